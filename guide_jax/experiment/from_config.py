"""What a config says of the training: its draws, weights and devices' work."""

from collections.abc import Callable

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from guide_jax.training import distributed
from guide_jax.training.accumulate import step_bytes
from guide_jax.training.losses import Compute, Judges, LossWeights, PairWeights
from guide_jax.training.sharding import Team
from guide_jax.training.step import Draws
from guide_jax.training.trainer import Unlearner


def unlearner(
    config: ConfigDict,
    networks: dict[str, nnx.Module],
    team: Team | None = None,
    line: int | None = None,
    say: Callable[[str], None] = print,
) -> Unlearner:
    """Prepares the training.

    Args:
        config: as `configs/default.py` describes it.
        networks: from `load_networks`.
        team: the devices that share each step; by default JAX's first one.
        line: of the terminal, for the progress bar, where others have some too.
        say: prints a line.
    """
    team, loss = team or Team(), config.loss
    return Unlearner(
        networks["generator"],
        Judges(networks["lpips"], networks["identity"]),
        learning_rate=config.optimizer.learning_rate,
        weights=LossWeights(
            pair_weights(loss.local), pair_weights(loss.adjacency), loss.global_.weight
        ),
        draws=draws(loss),
        frugal=_is_frugal(config, networks["generator"].resolution, team, say),
        compute=Compute(config.compute, config.precision, loss.lpips_resolution),
        team=team,
        line=line,
    )


def draws(loss: ConfigDict) -> Draws:
    """Returns what `config.loss` says of a step's random latents."""
    return Draws(
        loss.adjacency.count, loss.global_.count, loss.adjacency.alpha_max, loss.psi
    )


def pair_weights(part: ConfigDict) -> PairWeights:
    """Returns the weights of `config.loss.local` or `config.loss.adjacency`."""
    return PairWeights(part.mse_weight, part.lpips_weight, part.id_weight, part.weight)


def _is_frugal(
    config: ConfigDict, side: int, team: Team, say: Callable[[str], None]
) -> bool:
    if config.frugal != "auto":
        return config.frugal == "always"
    random = config.loss.adjacency.count + config.loss.global_.count
    pairs = 1 + random // len(team.devices)
    # The first process's, for all have to run the same programs.
    there = float(distributed.agree(np.float32(team.memory())))
    needed = pairs * step_bytes(side)
    if needed < there:
        return False
    say(
        f"a step takes one pair of pictures at a time: all {pairs} would take about"
        f" {needed / 1e9:.0f} GB, and there are {there / 1e9:.0f} (config.frugal)"
    )
    return True
