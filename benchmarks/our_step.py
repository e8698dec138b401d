"""Our unlearning step on random networks, set up for the benchmarks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import arithmetic
from benchmarks.random_networks import config_f, random
from benchmarks.separate_step import make_separate_step
from guide_jax import target
from guide_jax.config import load_config
from guide_jax.config_types import Compute, Training
from guide_jax.models.arcface import IRNet
from guide_jax.models.eg3d.generator import EG3D
from guide_jax.models.generator import make_mapping
from guide_jax.models.lpips import LPIPS
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.training.accumulate import make_accumulating_step
from guide_jax.training.context import StepContext, initial_state, make_context
from guide_jax.training.losses import LossNetworks, StepLatents
from guide_jax.training.sharding import DeviceGroup
from guide_jax.training.step import draw_latents, make_step

VARIANTS = {
    "ours": lambda context, sampling, devices: make_step(context, sampling),
    "accumulating": make_accumulating_step,
    "separate": make_separate_step,
}
PAPER = load_config("default")
SMALL_3D = {
    "channels": config_f(64, 64),
    "sr_channels": (32, 16),
    "render_size": 16,
    "depth_samples": 12,
    "importance_samples": 12,
}


class Problem(NamedTuple):
    """A person to forget, with random networks."""

    generator: Any
    loss_networks: LossNetworks
    training: Training
    w_u: jax.Array
    w_target: jax.Array
    key: jax.Array

    @property
    def pairs(self) -> int:
        """Number of pairs with all three loss terms, 1 + N_a."""
        return 1 + self.training.sampling.num_adjacent

    def latents(self) -> StepLatents:
        """Draws the latents that step 0 of our training draws."""
        context, key = self.context(Compute()), jax.random.fold_in(self.key, 0)

        @jax.jit
        def draw(constants):
            codes = self.w_u, self.w_target
            return draw_latents(context, constants, self.training.sampling, *codes, key)

        return draw(context.constants())

    def context(self, compute: Compute) -> StepContext:
        """Returns the context of this problem's steps."""
        training = self.training
        return make_context(
            self.generator,
            self.loss_networks,
            training.weights,
            training.learning_rate,
            compute,
        )

    def flop(self, lpips_resolution: int = 0) -> int | None:
        """Returns the useful FLOP of a step, or None for EG3D, which isn't counted.

        With `lpips_resolution` 0, LPIPS is at full resolution.
        """
        if isinstance(self.generator, EG3D):
            return None
        count = self.pairs + self.training.sampling.num_global
        return arithmetic.step_flop(
            self.generator.synthesis,
            *self.loss_networks,
            count,
            self.pairs,
            lpips_resolution or self.generator.resolution,
        )


def make_networks(
    resolution: int, tiny: bool, make: Callable = random
) -> tuple[StyleGAN2, LossNetworks]:
    """Makes a config-f generator and the loss networks.

    Args:
        resolution: image side in pixels.
        tiny: whether to make narrow networks, to try a script.
        make: makes a network from its constructor, which takes `rngs`.
    """
    channels = config_f(resolution, 16 if tiny else 512)
    generator = make(
        lambda rngs: StyleGAN2(
            resolution=resolution,
            channels=channels,
            # With the usual 0.01, random weights would map every z to the same code.
            mapping_lr_multiplier=1.0,
            rngs=rngs,
        )
    )
    return generator, _loss_networks(tiny, make)


def make_networks_3d(resolution: int, tiny: bool) -> tuple[EG3D, LossNetworks]:
    """Makes an EG3D generator and the loss networks.

    Args:
        resolution: image side in pixels. 512 is the published size; smaller images
            come with planes of 64 pixels and fewer samples along each ray.
        tiny: whether to make narrow networks, to try a script.
    """
    shape = {} if resolution == 512 else SMALL_3D | {"resolution": resolution}
    shape |= {"channels": config_f(64, 16), "render_size": 8} if tiny else {}
    return random(lambda rngs: EG3D(**shape, rngs=rngs)), _loss_networks(tiny, random)


def _loss_networks(tiny: bool, make: Callable) -> LossNetworks:
    small = {"units": (1, 1), "widths": (8, 8, 16), "input_size": 28} if tiny else {}
    return LossNetworks(make(LPIPS), make(lambda rngs: IRNet(**small, rngs=rngs)))


def make_problem(resolution: int, tiny: bool, kind: str = "stylegan2") -> Problem:
    """Makes random networks and a person to forget.

    Args:
        resolution: see `make_networks` and `make_networks_3d`.
        tiny: the same.
        kind: "stylegan2" or "eg3d".
    """
    make = make_networks_3d if kind == EG3D.kind else make_networks
    generator, loss_networks = make(resolution, tiny)
    z = np.random.default_rng(1).standard_normal((1, generator.z_dim), np.float32)
    w_u = make_mapping(generator)(z)
    w_target = target.extra(w_u, generator.mapping.w_avg[...], PAPER.target.distance)
    key = jax.random.key(2)
    return Problem(generator, loss_networks, PAPER.training, w_u, w_target, key)


class OurStep:
    """A variant of our step, with its train state."""

    def __init__(self, problem: Problem, name: str, compute: Compute):
        self._problem, self._compute = problem, compute
        self._make: Callable = VARIANTS[name]
        self.restart()

    def restart(self) -> None:
        """Resets the train state and makes a new step, which is not compiled yet."""
        p, devices = self._problem, DeviceGroup()
        context = p.context(self._compute)
        self._constants = devices.replicate(context.constants())
        state = initial_state(context, self._constants["source"])
        self._student, self._opt_state = devices.replicate(state)
        self._rest = devices.replicate((p.w_u, p.w_target, p.key))
        self._step = self._make(context, p.training.sampling, devices)

    def _args(self) -> tuple:
        state = (self._student, self._opt_state, self._constants)
        return (*state, *self._rest, np.int32(0))

    def __call__(self, steps: int) -> None:
        """Runs `steps` steps and waits for the last."""
        with jax.default_matmul_precision(self._compute.precision):
            for _ in range(steps):
                self._student, self._opt_state, self._terms = self._step(*self._args())
        jax.block_until_ready((self._student, self._opt_state, self._terms))

    def figures(self) -> tuple[float, float]:
        """Returns step 0's loss and gradient norm; call it after exactly one step."""
        # Adam's first moment is then a tenth of the gradient.
        leaves = jax.tree.leaves(self._opt_state[0].mu)
        squares = sum(jnp.sum((10 * leaf) ** 2) for leaf in leaves)
        return float(self._terms["total"]), float(squares) ** 0.5

    def planned(self) -> int | None:
        """Returns the bytes XLA allocates for a step's temporaries.

        None if the step is not a single program or XLA gives no memory plan.
        """
        if not hasattr(self._step, "lower"):
            return None
        plan = self._compiled().memory_analysis()
        return plan and plan.temp_size_in_bytes

    def program(self) -> str:
        """Returns the compiled program as text."""
        return self._compiled().as_text()

    def _compiled(self) -> jax.stages.Compiled:
        with jax.default_matmul_precision(self._compute.precision):
            return self._step.lower(*self._args()).compile()
