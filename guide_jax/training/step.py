"""One step of latent target unlearning, without a word of devices (section 3.3).

The generator is split once into trainable and frozen leaves; a step draws its latents,
takes one batched pass through the student and one through the source, and moves the
synthesis network's parameters, and no others, with Adam. `parallel.py` makes a program
of it.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from guide_jax.training.losses import (
    PLAIN,
    Compute,
    Differences,
    Judges,
    Latents,
    LossWeights,
    Views,
    differences,
    step_latents,
    view,
    weighted_sum,
)

Tree = Any


@dataclass(frozen=True)
class Draws:
    """How a step's random latents are drawn.

    Attributes:
        num_adjacent: N_a.
        num_global: N_g.
        alpha_max: the adjacency step's length is uniform in [0, alpha_max).
        psi: truncation of the random latents; the paper's is 1.
    """

    num_adjacent: int = 2
    num_global: int = 2
    alpha_max: float = 15.0
    psi: float = 1.0


class Trainer(NamedTuple):
    """A generator, split, with what is needed to train it.

    Attributes:
        graph: structure of the synthesis network.
        source: its published parameters, which stay.
        rest: its leaves that are not trained (stored noise).
        judges: (graph, leaves) of the frozen judges.
        mapping: (graph, leaves) of the frozen mapping network.
        z_dim: length of the mapping's input.
        tx: the optimizer.
        weights: of the losses.
        compute: how the networks are run.
    """

    graph: nnx.GraphDef
    source: Tree
    rest: Tree
    judges: tuple[nnx.GraphDef, Tree]
    mapping: tuple[nnx.GraphDef, Tree]
    z_dim: int
    tx: optax.GradientTransformation
    weights: LossWeights
    compute: Compute

    def constants(self) -> dict[str, Tree]:
        """Frozen leaves, to be passed as arguments: closed over, XLA folds them."""
        return {
            "source": self.source,
            "rest": self.rest,
            "judges": self.judges[1],
            "mapping": self.mapping[1],
        }


def make_trainer(
    generator: nnx.Module,
    judges: Judges,
    weights: LossWeights,
    learning_rate: float,
    compute: Compute = PLAIN,
) -> Trainer:
    """Splits a generator for training; its student starts as `trainer.source`."""
    graph, source, rest = nnx.split(generator.synthesis, nnx.Param, ...)
    return Trainer(
        graph=graph,
        source=source,
        rest=rest,
        judges=nnx.split(nnx.Dict(judges._asdict())),
        mapping=nnx.split(generator.mapping),
        z_dim=generator.z_dim,
        tx=optax.adam(learning_rate),
        weights=weights,
        compute=compute,
    )


def draw_latents(
    trainer: Trainer,
    constants: dict[str, Tree],
    draws: Draws,
    w_u: jax.Array,
    w_target: jax.Array,
    key: jax.Array,
) -> Latents:
    """Draws one step's latents; the mapping is frozen, one for student and source."""
    mapping = nnx.merge(trainer.mapping[0], constants["mapping"])
    key_z, key_alpha = jax.random.split(key)
    count = draws.num_adjacent + draws.num_global
    z = jax.random.normal(key_z, (count, trainer.z_dim))
    w_r = mapping(z, psi=draws.psi)  # [N_a + N_g, L, D]
    alpha = jax.random.uniform(key_alpha, (draws.num_adjacent,)) * draws.alpha_max
    w_ra, w_rg = w_r[: draws.num_adjacent], w_r[draws.num_adjacent :]
    return step_latents(w_u, w_target, w_ra, alpha, w_rg)


def loss_fn(
    trainer: Trainer,
    student: Tree,
    constants: dict[str, Tree],
    latents: Latents,
    by: Differences,
) -> tuple[jax.Array, Differences]:
    """The loss of all, or some, of a step's pairs.

    Args:
        trainer: from `make_trainer`.
        student: the trainable parameters.
        constants: `trainer.constants()`.
        latents: `[N, L, D]` for student and source; those that are compared by LPIPS
            alone come last.
        by: what each difference counts for, `losses.factors` of these pairs.

    Returns:
        The loss, and the pairs' differences.
    """
    merged = nnx.merge(trainer.judges[0], constants["judges"])
    judges = Judges(merged["lpips"], merged["identity"])

    def views(parameters: Tree, w: jax.Array) -> Views:
        synthesis = nnx.merge(trainer.graph, parameters, constants["rest"])
        return view(synthesis, w, judges, len(by.identity), trainer.compute)

    with jax.named_scope("source"):
        source = jax.lax.stop_gradient(views(constants["source"], latents.source))
    with jax.named_scope("student"):
        mine = views(student, latents.student)
    compare = functools.partial(judges.lpips.raw_distance, dtype=mine.features.dtype)
    with jax.named_scope("losses"):
        found = differences(mine, source, compare)
    return weighted_sum(found, by), found


def gradients(
    trainer: Trainer,
    student: Tree,
    constants: dict[str, Tree],
    latents: Latents,
    by: Differences,
) -> tuple[Tree, Differences]:
    """The gradient of `loss_fn` in the student, and the pairs' differences."""

    def loss(student: Tree) -> tuple[jax.Array, Differences]:
        return loss_fn(trainer, student, constants, latents, by)

    return jax.grad(loss, has_aux=True)(student)


def update(
    trainer: Trainer, student: Tree, opt_state: Tree, grads: Tree
) -> tuple[Tree, Tree]:
    """Adam's step; returns (student, opt_state)."""
    updates, opt_state = trainer.tx.update(grads, opt_state, student)
    return optax.apply_updates(student, updates), opt_state


def fresh(trainer: Trainer, source: Tree) -> tuple[Tree, Tree]:
    """Returns (student, opt_state) before the first step.

    The student is a copy, because the program of a step donates it.
    """
    return _fresh(trainer.tx, source)


# One program, for all devices' copies of all leaves.
@functools.partial(jax.jit, static_argnums=0)
def _fresh(tx: optax.GradientTransformation, source: Tree) -> tuple[Tree, Tree]:
    return jax.tree.map(jnp.copy, source), tx.init(source)
