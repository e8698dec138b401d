"""What the demo reaches on ten people, and what the paper's baseline target reaches.

    python benchmarks/demo_quality.py

Unlearns each of the people of seeds 0-9 with the demo's settings, once with the target
"extra" and once with the baseline "average", and judges with the encoder that was not
in the loss: the person before and after, and 200 other people before and after.
Finished runs are kept in the work folder and skipped.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import demo
from guide_jax import experiment
from guide_jax.report import mean_and_deviation

COLUMNS = ("id", "id_strangers", "id_others", "id_others_worst", "lpips_others")


def main():
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo_quality"))
    parser.add_argument("--targets", nargs="+", default=["extra", "average"])
    args = parser.parse_args()
    # All runs are of the same programs.
    cache = str((args.workdir / "cache").absolute())
    jax.config.update("jax_compilation_cache_dir", cache)
    for name in args.targets:
        results = []
        for seed in range(args.people):
            workdir = args.workdir / f"{name}_{seed}"
            if not (workdir / "results.json").exists():
                config = demo.get_config()
                config.source.seed = seed
                config.target.name = name
                config.evaluate.others = args.others
                experiment.run(config, workdir)
            results.append(json.loads((workdir / "results.json").read_text()))
        print(f"\ntarget {name!r}, {args.people} people, {args.others} others each")
        for column in COLUMNS:
            values = [result[column] for result in results]
            print(f"  {column:16} {mean_and_deviation(values)}   {np.round(values, 2)}")
        seconds = np.mean([result["seconds"]["total"] for result in results])
        print(f"  {seconds:.0f} s a person")


if __name__ == "__main__":
    main()
