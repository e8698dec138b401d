"""Attacks ten forgotten people for each method and prints how much is recovered.

    python -m benchmarks.forgetting
    python -m benchmarks.forgetting --config demo_128 --seeds 4000 4001

Forgets each person of seeds 4000-4009, whom no bundled network was trained on, with the
demo's settings and each method of `demo_quality.py`. Then runs `--mode=attack` on each.
Results in the work folder that match these settings and weights are reused.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_quality import CONFIGS, METHODS, settings
from guide_jax.attacks.verdict import LEVELS
from guide_jax.experiment.modes import run
from guide_jax.reports.terminal import mean_and_deviation
from guide_jax.storage.run_folder import ATTACKS, PEOPLE

COMPARED = "own", "extra", "average_local_only"
GROUPS = "original", "unlearned", "strangers"
COLUMNS = "id", "id_strangers", "id_kept", "id_kept_worst", "lpips_kept", "lpips_target"


def main() -> None:
    """Runs what is not yet done and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(4000, 4010))
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=COMPARED)
    parser.add_argument("--attacks", nargs="+", help="names of attacks; default: all")
    parser.add_argument(
        "--external", help="folder of judges as published; see docs/judges.md"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/forgetting"))
    args = parser.parse_args()
    for method in args.methods:
        config = settings(args.config, method, args.seeds, args.others)
        config.attack.require = 0  # the tables show every level
        if args.external:
            config.evaluate.external_folder = args.external
        if args.attacks:
            config.attack.which = tuple(args.attacks)
        folder = args.workdir / args.config / method
        run(config, folder)
        people = run(config, folder, "attack")["people"]
        print(f"\n{method}: {len(people)} people, {args.others} others each")
        for line in _measures(people):
            print(line)
        for line in _attacks(
            [_attacks_of(folder, x["person"], people) for x in people]
        ):
            print(line)


def _attacks_of(folder: Path, person: str, people: Sequence[Any]) -> dict[str, Any]:
    own = folder if len(people) == 1 else folder / PEOPLE / person
    return json.loads((own / ATTACKS).read_text())


def _measures(people: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for column in COLUMNS:
        values = [person["measures"][column] for person in people]
        yield f"  {column:16} {mean_and_deviation(values)}   {np.round(values, 2)}"
    for level, meaning in LEVELS.items():
        holds = [person["verdict"]["levels"][str(level)]["holds"] for person in people]
        count = f"{holds.count(True)} of {len(holds)}"
        yield f"  level {level} holds for {count} ({meaning})"


def _attacks(people: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a Markdown table: means over people, and the person who comes closest."""
    found: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for person in people:
        for outcome in person["outcomes"]:
            for group, by_judge in outcome["similarities"].items():
                for judge, values in by_judge.items():
                    seen = [x for x in values if x is not None]
                    key = outcome["attack"], outcome["budget"], judge
                    if seen:
                        found[key][group].append(float(np.mean(seen)))
    yield f"| attack | steps | judge | {' | '.join(GROUPS)} | highest unlearned |"
    yield "|---|---|---|---|---|---|---|"
    for (attack, budget, judge), groups in found.items():
        means = [f"{np.mean(groups[x]):.2f}" if groups[x] else "-" for x in GROUPS]
        steps = "-" if budget is None else budget
        highest = max(groups["unlearned"], default=np.nan)
        yield f"| {attack} | {steps} | {judge} | {' | '.join(means)} | {highest:.2f} |"


if __name__ == "__main__":
    main()
