"""Relearning: fine-tunes a generator on a person's photo, as pivotal tuning does.

Any generator learns any face in this way (Roich et al., arXiv 2106.05744). What counts
is whether an unlearned person comes back sooner than a stranger is learned.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from guide_jax.models.generator import TRAINABLE, Generator, synthesize

LEARNING_RATE = 3e-4  # pivotal tuning's


def make_relearn(generator: Generator, lpips: nnx.Module) -> Callable:
    """Returns a function that fine-tunes generators of one architecture.

    The function takes a generator, a code `[1, L, D]`, the photo `[1, H, W, 3]`, rising
    numbers of steps, and a progress bar or None. It returns number of steps -> the
    image `[1, H, W, 3]` of the code after so many steps.

    Args:
        generator: any generator of the architecture.
        lpips: the loss is LPIPS plus the mean squared error.
    """
    adam = optax.adam(LEARNING_RATE)
    split: Any = nnx.split  # mypy does not accept `...` as a filter
    graph, _, _ = split(generator.synthesis, TRAINABLE, ...)
    lpips_graph, lpips_state = nnx.split(lpips)

    def image(parameters: Any, frozen: Any, w: jax.Array) -> jax.Array:
        return synthesize(nnx.merge(graph, parameters, frozen), w).images

    @jax.jit
    def step(parameters, opt_state, frozen, lpips_state, w, photo):
        def loss(parameters: Any) -> jax.Array:
            made = image(parameters, frozen, w)
            distance = nnx.merge(lpips_graph, lpips_state)(made, photo)
            return distance[0] + jnp.mean((made - photo) ** 2)

        updates, opt_state = adam.update(jax.grad(loss)(parameters), opt_state)
        return optax.apply_updates(parameters, updates), opt_state

    show, init = jax.jit(image), jax.jit(adam.init)

    def relearn(
        generator: Generator,
        w: np.ndarray,
        photo: np.ndarray,
        budgets: Sequence[int],
        bar: tqdm | None = None,
    ) -> dict[int, np.ndarray]:
        _, parameters, frozen = split(generator.synthesis, TRAINABLE, ...)
        opt_state = init(parameters)
        shown = {}
        for i in range(max(budgets) + 1):
            if i in budgets:
                shown[i] = np.asarray(show(parameters, frozen, w))
            if i == max(budgets):
                break
            parameters, opt_state = step(
                parameters, opt_state, frozen, lpips_state, w, photo
            )
            if bar is not None:
                bar.update()
        return shown

    return relearn
