"""Measures the demo on ten people: both methods, and the paper's baseline target.

    python -m benchmarks.demo_quality
    python -m benchmarks.demo_quality --config demo_128

Forgets each person of seeds 0-9 with the demo's settings and each method below. An
identity encoder that is not in the loss compares the person before and after, and 200
other people before and after. Results in the work folder that match these settings and
weights are reused.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import demo, demo_128
from configs.demo_guide import use_guide
from guide_jax.experiment.modes import run
from guide_jax.reports.terminal import mean_and_deviation

CONFIGS = {"demo": demo, "demo_128": demo_128}
OWN = "own"  # the demos' own method
GUIDE_STEPS = {"demo": 500, "demo_128": 250}  # of the other methods
METHODS: dict[str, dict[str, Any]] = {
    OWN: {},
    "extra": {},
    "average": {"target.name": "average"},
    # The paper's baseline: no loss keeps the person's neighbours or the others.
    "average_local_only": {
        "target.name": "average",
        "loss.adjacency.count": 0,
        "loss.global_.count": 0,
    },
}
COLUMNS = ("id", "id_strangers", "id_kept", "id_kept_worst", "lpips_kept")


def settings(name: str, method: str, seeds: Sequence[int], others: int) -> ConfigDict:
    """Returns a method's settings, without attacks.

    Args:
        name: a key of `CONFIGS`.
        method: a key of `METHODS`.
        seeds: the people to forget.
        others: number of other people who are measured.
    """
    config = CONFIGS[name].get_config()
    if method != OWN:
        use_guide(config)
        config.steps = GUIDE_STEPS[name]
        config.update_from_flattened_dict(METHODS[method])
    config.source.seeds = tuple(seeds)
    config.evaluate.others = others
    config.attack.after_training = ()
    return config


def main():
    """Runs what is not yet done and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10))
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo_quality"))
    args = parser.parse_args()
    for method in args.methods:
        config = settings(args.config, method, args.seeds, args.others)
        results = run(config, args.workdir / args.config / method)
        people = [person["measures"] for person in results["people"]]
        print(f"\n{method}: {len(people)} people, {args.others} others each")
        for column in COLUMNS:
            values = [person[column] for person in people]
            print(f"  {column:16} {mean_and_deviation(values)}   {np.round(values, 2)}")


if __name__ == "__main__":
    main()
