"""Our unlearning step on random networks, as the benchmarks take it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import arithmetic
from benchmarks.random_networks import config_f, random
from guide_jax import target
from guide_jax.models.arcface import IRNet
from guide_jax.models.lpips import LPIPS
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.locate import make_mapping
from guide_jax.training.accumulate import make_frugal_step
from guide_jax.training.losses import Compute, Judges, Latents, LossWeights
from guide_jax.training.sharding import Team, make_train_step
from guide_jax.training.step import Draws, Trainer, draw_latents, fresh, make_trainer

WAYS = {"ours": make_train_step, "frugal": make_frugal_step}
LEARNING_RATE = 1e-4
DISTANCE = 30.0  # d, from the mean to the target


class Problem(NamedTuple):
    """One person to be forgotten by random networks."""

    generator: StyleGAN2
    judges: Judges
    draws: Draws
    weights: LossWeights
    w_u: jax.Array
    w_target: jax.Array
    key: jax.Array

    @property
    def pairs(self) -> int:
        """How many pairs are compared by more than LPIPS."""
        return 1 + self.draws.num_adjacent

    def latents(self) -> Latents:
        """What our step draws with the key."""

        trainer, key = self.trainer(Compute()), jax.random.fold_in(self.key, 0)

        @jax.jit
        def draw(constants):
            codes = self.w_u, self.w_target
            return draw_latents(trainer, constants, self.draws, *codes, key)

        return draw(trainer.constants())

    def trainer(self, compute: Compute) -> Trainer:
        """The problem's trainer."""
        networks = self.generator, self.judges
        return make_trainer(*networks, self.weights, LEARNING_RATE, compute)

    def flop(self) -> int:
        """The useful arithmetic of a step."""
        count = self.pairs + self.draws.num_global
        synthesis = self.generator.synthesis
        return arithmetic.step_flop(synthesis, *self.judges, count, self.pairs)


def make_problem(resolution: int, tiny: bool) -> Problem:
    """Makes the networks and a person.

    Args:
        resolution: in pixels.
        tiny: narrow networks, to try the script.
    """
    channels = config_f(resolution, 16 if tiny else 512)
    small = {"units": (1, 1), "widths": (8, 8, 16), "input_size": 28} if tiny else {}
    generator = random(
        lambda rngs: StyleGAN2(
            resolution=resolution,
            channels=channels,
            # Random weights are drawn for this one: with the usual 0.01 all codes
            # would be the same.
            mapping_lr_multiplier=1.0,
            rngs=rngs,
        )
    )
    judges = Judges(random(LPIPS), random(lambda rngs: IRNet(**small, rngs=rngs)))
    z = np.random.default_rng(1).standard_normal((1, generator.z_dim), np.float32)
    w_u = make_mapping(generator)(z)
    w_target = target.extra(w_u, generator.mapping.w_avg[...], DISTANCE)
    key = jax.random.key(2)
    return Problem(generator, judges, Draws(), LossWeights(), w_u, w_target, key)


class OurWay:
    """One of our steps and its state."""

    def __init__(self, problem: Problem, name: str, compute: Compute):
        self._problem, self._compute = problem, compute
        self._make: Callable = WAYS[name]
        self.restart()

    def restart(self) -> None:
        """Goes back to the start, with a step that isn't compiled yet."""
        p, team = self._problem, Team()
        trainer = p.trainer(self._compute)
        self._constants = team.replicate(trainer.constants())
        state = fresh(trainer, self._constants["source"])
        self._student, self._opt_state = team.replicate(state)
        self._rest = team.replicate((p.w_u, p.w_target, p.key))
        self._step = self._make(trainer, p.draws, team)

    def _args(self) -> tuple:
        state = (self._student, self._opt_state, self._constants)
        return (*state, *self._rest, np.int32(0))

    def __call__(self, steps: int) -> None:
        """Takes steps, and waits for the last."""
        with jax.default_matmul_precision(self._compute.precision):
            for _ in range(steps):
                self._student, self._opt_state, self._terms = self._step(*self._args())
        jax.block_until_ready((self._student, self._opt_state, self._terms))

    def figures(self) -> tuple[float, float]:
        """Returns loss and length of its gradient after the very first step."""
        # Adam's first moment is then a tenth of the gradient.
        leaves = jax.tree.leaves(self._opt_state[0].mu)
        squares = sum(jnp.sum((10 * leaf) ** 2) for leaf in leaves)
        return float(self._terms["total"]), float(squares) ** 0.5

    def planned(self) -> int | None:
        """Returns the bytes that XLA sets aside for a step, where it is one program."""
        if not hasattr(self._step, "lower"):
            return None
        plan = self._compiled().memory_analysis()
        return plan and plan.temp_size_in_bytes

    def program(self) -> str:
        """Returns the compiled program's text."""
        return self._compiled().as_text()

    def _compiled(self) -> jax.stages.Compiled:
        with jax.default_matmul_precision(self._compute.precision):
            return self._step.lower(*self._args()).compile()
