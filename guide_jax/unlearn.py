"""The unlearning run: a student forgets, a frozen source remembers (section 3.3).

The generator is split once into trainable and frozen leaves; each step draws its
latents, takes one batched pass through the student and one through the source, and
moves the synthesis network's parameters, and no others, with Adam.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from guide_jax.checkpoint import Keeper
from guide_jax.errors import UnlearningError
from guide_jax.losses import (
    PLAIN,
    Compute,
    Differences,
    Judges,
    Latents,
    LossWeights,
    PairWeights,
    Views,
    differences,
    step_latents,
    unlearning_loss,
    view,
)

Tree = Any
SHOWN = ("total", "local", "adjacency", "global", "id")  # beside the progress bar


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


PUBLISHED_WEIGHTS = LossWeights()
PUBLISHED_DRAWS = Draws()


class Trainer(NamedTuple):
    """A generator, split, with what is needed to train it.

    Attributes:
        graph: structure of the synthesis network.
        source: its published parameters, which stay.
        rest: its leaves that are not trained (stored noise).
        judges: (graph, leaves) of the frozen judges.
        mapping: (graph, leaves) of the frozen mapping network.
        tx: the optimizer.
        weights: of the losses.
        compute: how the networks are run.
    """

    graph: nnx.GraphDef
    source: Tree
    rest: Tree
    judges: tuple[nnx.GraphDef, Tree]
    mapping: tuple[nnx.GraphDef, Tree]
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
) -> tuple[Trainer, Tree]:
    """Splits a generator for training.

    Returns:
        The trainer, and the student's parameters: a copy of the source's.
    """
    graph, source, rest = nnx.split(generator.synthesis, nnx.Param, ...)
    trainer = Trainer(
        graph=graph,
        source=source,
        rest=rest,
        judges=_split_judges(judges),
        mapping=nnx.split(generator.mapping),
        tx=optax.adam(learning_rate),
        weights=weights,
        compute=compute,
    )
    # A copy, because the step donates the student's buffers.
    return trainer, jax.tree.map(jnp.copy, source)


def _split_judges(judges: Judges):
    return nnx.split(nnx.Dict(judges._asdict()))


def loss_fn(
    trainer: Trainer,
    student: Tree,
    constants: dict[str, Tree],
    latents: Latents,
    num_pairs: int,
    weights: LossWeights | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one step and its terms, for given latents.

    Args:
        trainer: from `make_trainer`.
        student: the trainable parameters.
        constants: `trainer.constants()`.
        latents: `[1 + N_a + N_g, L, D]` for student and source.
        num_pairs: 1 + N_a.
        weights: if not the trainer's.
    """
    merged = nnx.merge(trainer.judges[0], constants["judges"])
    judges = Judges(merged["lpips"], merged["identity"])

    def views(parameters: Tree, w: jax.Array) -> Views:
        synthesis = nnx.merge(trainer.graph, parameters, constants["rest"])
        return view(synthesis, w, judges, num_pairs, trainer.compute)

    source = jax.lax.stop_gradient(views(constants["source"], latents.source))
    mine = views(student, latents.student)
    compare = functools.partial(judges.lpips.raw_distance, dtype=mine.features.dtype)
    found = differences(mine, source, compare)
    return unlearning_loss(found, weights or trainer.weights)


def step_on(
    trainer: Trainer,
    student: Tree,
    opt_state: Tree,
    constants: dict[str, Tree],
    latents: Latents,
    num_pairs: int,
) -> tuple[Tree, Tree, dict[str, jax.Array]]:
    """One Adam step on given latents; returns (student, opt_state, terms before it)."""
    gradient = jax.grad(
        lambda student: loss_fn(trainer, student, constants, latents, num_pairs),
        has_aux=True,
    )
    grads, terms = gradient(student)
    updates, opt_state = trainer.tx.update(grads, opt_state, student)
    return optax.apply_updates(student, updates), opt_state, terms


def draw_latents(
    mapping: nnx.Module,
    key: jax.Array,
    w_u: jax.Array,
    w_target: jax.Array,
    draws: Draws,
    z_dim: int,
) -> Latents:
    """Draws one step's latents; the mapping is frozen, one for student and source."""
    key_z, key_alpha = jax.random.split(key)
    count = draws.num_adjacent + draws.num_global
    z = jax.random.normal(key_z, (count, z_dim))
    w_r = mapping(z, psi=draws.psi)  # [N_a + N_g, L, D]
    alpha = jax.random.uniform(key_alpha, (draws.num_adjacent,)) * draws.alpha_max
    w_ra, w_rg = w_r[: draws.num_adjacent], w_r[draws.num_adjacent :]
    return step_latents(w_u, w_target, w_ra, alpha, w_rg)


def make_train_step(trainer: Trainer, draws: Draws, z_dim: int) -> Callable:
    """Returns the jitted step.

    Its arguments are (student, opt_state, constants, w_u, w_target, key); the first two
    are donated. It returns (student, opt_state, terms).
    """

    def train_step(student, opt_state, constants, w_u, w_target, key):
        mapping = nnx.merge(trainer.mapping[0], constants["mapping"])
        latents = draw_latents(mapping, key, w_u, w_target, draws, z_dim)
        num_pairs = 1 + draws.num_adjacent
        return step_on(trainer, student, opt_state, constants, latents, num_pairs)

    return jax.jit(train_step, donate_argnums=(0, 1))


def make_frugal_step(trainer: Trainer, draws: Draws, z_dim: int) -> Callable:
    """As `make_train_step`, in the memory of one pair.

    The loss is a sum over pairs, so its gradient is the sum of theirs: one program
    takes a pair forward and back, another adds it up.
    """
    weights = trainer.weights
    none = PairWeights(0.0, 0.0, 0.0, 0.0)
    for_others = PairWeights(0.0, weights.global_, 0.0)  # by LPIPS alone

    @jax.jit
    def draw(constants, w_u, w_target, key):
        mapping = nnx.merge(trainer.mapping[0], constants["mapping"])
        return draw_latents(mapping, key, w_u, w_target, draws, z_dim)

    @functools.partial(jax.jit, static_argnames="part", donate_argnums=1)
    def pair(student, total, constants, latents, part):
        # A pair of its own is a step's first one.
        alone = LossWeights(part, none, 0.0)
        gradient = jax.grad(
            lambda x: loss_fn(trainer, x, constants, latents, 1, alone), has_aux=True
        )
        grads, terms = gradient(student)
        found = Differences(terms["mse"], terms["lpips"], terms["id"])
        return jax.tree.map(jnp.add, total, grads), found

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(student, opt_state, grads):
        updates, opt_state = trainer.tx.update(grads, opt_state, student)
        return optax.apply_updates(student, updates), opt_state

    @jax.jit
    def terms_of(found):
        pairs = 1 + draws.num_adjacent
        mse, lpips, identity = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
        found = Differences(mse[:pairs], lpips, identity[:pairs])
        return unlearning_loss(found, weights)[1]

    def train_step(student, opt_state, constants, w_u, w_target, key):
        latents = draw(constants, w_u, w_target, key)
        parts = [weights.local] + [weights.adjacency] * draws.num_adjacent
        parts += [for_others] * draws.num_global
        total, found = jax.tree.map(jnp.zeros_like, student), []
        for i, part in enumerate(parts):
            one = Latents(*(w[i : i + 1] for w in latents))
            total, differences_of_one = pair(student, total, constants, one, part)
            found.append(differences_of_one)
        student, opt_state = update(student, opt_state, total)
        return student, opt_state, terms_of(found)

    return train_step


class Unlearner:
    """Makes a generator forget one person after another, with one compiled step."""

    def __init__(
        self,
        generator: nnx.Module,
        judges: Judges,
        *,
        learning_rate: float = 1e-4,
        weights: LossWeights = PUBLISHED_WEIGHTS,
        draws: Draws = PUBLISHED_DRAWS,
        frugal: bool = False,
        compute: Compute = PLAIN,
    ):
        """Prepares the step.

        Args:
            generator: every person is forgotten from it; it stays as it is.
            judges: LPIPS and identity networks for the losses.
            learning_rate: Adam's.
            weights: of the losses.
            draws: of the random latents.
            frugal: takes one pair at a time, to save memory.
            compute: how the step's networks are run.
        """
        self._generator = generator
        self._trainer, _ = make_trainer(
            generator, judges, weights, learning_rate, compute
        )
        self._constants = self._trainer.constants()
        make = make_frugal_step if frugal else make_train_step
        self._step = make(self._trainer, draws, generator.z_dim)
        graph = self._trainer.graph

        @jax.jit
        def image(student, rest, w):
            return nnx.merge(graph, student, rest)(w)[0]

        self._image = image

    def __call__(
        self,
        w_u: jax.Array,
        w_target: jax.Array,
        *,
        steps: int,
        key: jax.Array,
        on_step: Callable[[int, dict[str, float]], None] = lambda step, terms: None,
        keeper: Keeper | None = None,
    ) -> nnx.Module:
        """Makes the generator forget one person.

        Args:
            w_u: the person's code `[1, L, D]`.
            w_target: where it shall go, `[1, L, D]`.
            steps: how many; the paper's is 1000.
            key: step i draws from `jax.random.fold_in(key, i)`.
            on_step: called with each step's number and terms, one step late.
            keeper: keeps the state now and then; a state that it has is gone on from,
                and `on_step` begins there.

        Returns:
            A generator with a synthesis network of its own.

        Raises:
            UnlearningError: a loss, or the image after the last step, is not finite.
        """
        state = self._begin(key, keeper)
        first = int(state["step"])
        student, opt_state = state["student"], state["opt_state"]
        with tqdm(total=steps, initial=first, desc="forgetting", unit="step") as bar:
            bar.set_postfix_str("compiling the step")

            def report(step: int, terms: dict[str, jax.Array]) -> None:
                summary = summarise(jax.device_get(terms))
                if not np.isfinite(summary["total"]):
                    raise UnlearningError(
                        f"the loss is {summary['total']} at step {step}: nothing of it"
                        " was kept; a lower learning rate may help"
                    )
                if step == first:
                    bar.unpause()  # the compilation is no measure of what is to come
                bar.update()
                bar.set_postfix({name: f"{summary[name]:.3f}" for name in SHOWN})
                on_step(step, summary)

            waiting = []  # reading a step's terms one step late doesn't wait for it
            for i in range(first, steps):
                key_i = jax.random.fold_in(key, i)
                with jax.default_matmul_precision(self._trainer.compute.precision):
                    student, opt_state, terms = self._step(
                        student, opt_state, self._constants, w_u, w_target, key_i
                    )
                waiting.append((i, terms))
                due = keeper is not None and keeper.due(i + 1)
                while len(waiting) > (0 if due else 1):
                    report(*waiting.pop(0))
                if due and i + 1 < steps:
                    self._check_image(student, w_u)
                    keeper.save(_state(i + 1, key, student, opt_state))
            for late in waiting:
                report(*late)
        # A step's loss is measured before its update: this looks at the last one's.
        self._check_image(student, w_u)
        forgetful = nnx.clone(self._generator)
        # A copy, so that not even the stored noise is shared with the original.
        rest = self._trainer.rest
        forgetful.synthesis = nnx.merge(self._trainer.graph, student, rest, copy=True)
        return forgetful

    def _begin(self, key: jax.Array, keeper: Keeper | None) -> Tree:
        # A copy, because the step donates the student's buffers.
        student = jax.tree.map(jnp.copy, self._trainer.source)
        state = _state(0, key, student, self._trainer.tx.init(student))
        return keeper.load(state) if keeper else state

    def _check_image(self, student: Tree, w_u: jax.Array) -> None:
        if not np.isfinite(self._image(student, self._trainer.rest, w_u)).all():
            raise UnlearningError(
                "training left a generator whose images are not finite: nothing of it"
                " was kept; a lower learning rate may help"
            )


def _state(step: int, key: jax.Array, student: Tree, opt_state: Tree) -> Tree:
    return {
        "step": np.asarray(step, np.int64),
        "key": jax.random.key_data(key),
        "student": student,
        "opt_state": opt_state,
    }


def summarise(terms: dict[str, np.ndarray]) -> dict[str, float]:
    """Turns a step's terms into plain numbers: of the arrays, the person's own pair."""
    return {
        name: float(value if np.ndim(value) == 0 else value[0])
        for name, value in terms.items()
    }
