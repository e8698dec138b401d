"""What a step needs besides the latents: split networks, weights, optimizer, state."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from guide_jax.config_types import Compute, LossWeights
from guide_jax.models.generator import TRAINABLE, Generator, view_drawer
from guide_jax.training.losses import FLOAT32, LossNetworks

Tree = Any


@dataclass(frozen=True, eq=False)
class StepContext:
    """Everything a step needs besides the student: split networks, weights, optimizer.

    Attributes:
        graph: structure of the synthesis network.
        source: the original's trainable parameters, which do not change.
        frozen: leaves that are not trained (stored noise).
        loss_networks: (graph, leaves) of LPIPS and the identity encoder.
        mapping: (graph, leaves) of the frozen mapping network.
        z_dim: Z, length of the mapping's input.
        draw_view: a function (key, N) -> camera arguments of a step, N rows.
        optimizer: Adam.
        weights: the losses' weights.
        compute: numerical settings (dtype, LPIPS resolution).
        compat: whether student and source draw noise and samples along rays each for
            itself, as published.
    """

    graph: nnx.GraphDef
    source: Tree
    frozen: Tree
    loss_networks: tuple[nnx.GraphDef, Tree]
    mapping: tuple[nnx.GraphDef, Tree]
    z_dim: int
    draw_view: Callable[[jax.Array, int], dict[str, jax.Array]]
    optimizer: optax.GradientTransformation
    weights: LossWeights
    compute: Compute
    compat: bool = False

    def constants(self) -> dict[str, Tree]:
        """Returns the frozen leaves, which the step takes as an argument.

        XLA would fold arrays that a jitted function closes over, which takes minutes.
        """
        return {
            "source": self.source,
            "frozen": self.frozen,
            "loss_networks": self.loss_networks[1],
            "mapping": self.mapping[1],
        }


def make_context(
    generator: Generator,
    loss_networks: LossNetworks,
    weights: LossWeights,
    learning_rate: float,
    compute: Compute = FLOAT32,
    compat: bool = False,
) -> StepContext:
    """Splits a generator for training; the student starts as a copy of `source`."""
    # mypy does not accept `...` as a filter.
    split: Any = nnx.split
    graph, source, frozen = split(generator.synthesis, TRAINABLE, ...)
    return StepContext(
        graph=graph,
        source=source,
        frozen=frozen,
        loss_networks=nnx.split(nnx.Dict(loss_networks._asdict())),
        mapping=nnx.split(generator.mapping),
        z_dim=generator.z_dim,
        draw_view=view_drawer(generator),
        optimizer=optax.adam(learning_rate),
        weights=weights,
        compute=compute,
        compat=compat,
    )


def initial_state(context: StepContext, source: Tree) -> tuple[Tree, Tree]:
    """Returns (student, opt_state) before the first step.

    The student is a copy, because the step overwrites it.
    """
    return _initial_state(context.optimizer, source)


# Jitted, so that one program handles all leaves, on whichever devices they are.
@partial(jax.jit, static_argnums=0)
def _initial_state(
    optimizer: optax.GradientTransformation, source: Tree
) -> tuple[Tree, Tree]:
    return jax.tree.map(jnp.copy, source), optimizer.init(source)
