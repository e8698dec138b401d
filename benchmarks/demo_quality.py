"""What the demo reaches on ten people, beside the paper's baseline target.

    python benchmarks/demo_quality.py
    python benchmarks/demo_quality.py --config demo_128

Unlearns each of the people of seeds 0-9 with the demo's settings and each method below,
and judges with the encoder that was not in the loss: the person before and after, and
200 other people before and after. Finished runs are kept in the work folder and
skipped, unless the settings or the weights have changed since.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import demo, demo_128
from guide_jax import experiment
from guide_jax.networks import locate
from guide_jax.report import mean_and_deviation

CONFIGS = {"demo": demo, "demo_128": demo_128}
METHODS = {
    "extra": {},
    "average": {"target.name": "average"},
    # The paper's baseline: nothing holds the neighbours or the others in place.
    "average_local_only": {
        "target.name": "average",
        "loss.adjacency.count": 0,
        "loss.global_.count": 0,
    },
}
COLUMNS = ("id", "id_strangers", "id_others", "id_others_worst", "lpips_others")


def result_of(config: ConfigDict, workdir: Path) -> dict:
    """Returns a run's results, from the work folder if they still hold."""
    path = workdir / "results.json"
    if path.exists():
        old = json.loads(path.read_text())
        weights = (locate(network.path) for network in config.networks.values())
        newest = max(file.stat().st_mtime for file in weights)
        same = old["config"] == json.loads(json.dumps(config.to_dict()))
        if same and path.stat().st_mtime > newest:
            return old
    return experiment.run(config, workdir)


def main():
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10))
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo_quality"))
    args = parser.parse_args()
    workdir = args.workdir / args.config
    # All runs of a method are of the same programs.
    cache = str((workdir / "cache").absolute())
    jax.config.update("jax_compilation_cache_dir", cache)
    for method in args.methods:
        results = []
        for seed in args.seeds:
            config = CONFIGS[args.config].get_config()
            config.update_from_flattened_dict(METHODS[method])
            config.source.seed = seed
            config.evaluate.others = args.others
            results.append(result_of(config, workdir / f"{method}_{seed}"))
        print(f"\n{method}: {len(results)} people, {args.others} others each")
        for column in COLUMNS:
            values = [result[column] for result in results]
            print(f"  {column:16} {mean_and_deviation(values)}   {np.round(values, 2)}")
        seconds = np.mean([result["seconds"]["total"] for result in results])
        print(f"  {seconds:.0f} s a person")


if __name__ == "__main__":
    main()
