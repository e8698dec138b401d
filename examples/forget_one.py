"""The library in twenty lines: forget one sampled person, measure, and export.

    python examples/forget_one.py

writes the unlearned generator to `runs/example/generator`, where `main.py
--mode=render` and `python -m convert --export` can read it, and its PyTorch state dict
next to it.
"""

from pathlib import Path

import guide_jax
from convert.export import export
from convert.state_dict_writer import write


def main(workdir: Path, **changes: object) -> dict:
    """Makes the bundled generator forget the person of seed 3; returns the measures.

    Args:
        workdir: the folder for the generator and the state dict.
        changes: config values by dotted field name, as in `**{"steps": 100}`.
    """
    config = guide_jax.load_config("demo", **changes)
    networks = guide_jax.load_networks(config)
    generator = networks["generator"]

    latents = guide_jax.LatentFinder(config, networks)
    found = latents(guide_jax.sampled(seed=3))
    codes = found.codes  # w_u and w_target, [P, L, D]
    train = guide_jax.make_trainer(config, networks)
    unlearned = train(codes.w_u, codes.w_target, changes=found.changes)

    judges = {"judge": guide_jax.cropping_judge(networks["judge"], batch=10)}
    evaluator = guide_jax.Evaluator(generator, networks["lpips"], judges)
    before = evaluator.judged(generator, codes.w_u[:1])
    after = evaluator.judged(unlearned, codes.w_u[:1])
    others = latents.random(seed=1, count=config.evaluate.others)
    kept = evaluator.kept(unlearned, others, shown=0)

    guide_jax.save_network(workdir / "generator", unlearned)
    write(workdir / "generator.npz", export(unlearned, "nvlabs"))
    return evaluator.compare(kept, (before, after))["measures"]


if __name__ == "__main__":
    for name, value in main(Path("runs/example")).items():
        print(f"{name:14} {value:.3f}")
