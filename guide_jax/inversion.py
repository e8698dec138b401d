"""Inverts photos: finds the code from which the generator reproduces the person.

See section 3.1 of the paper.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.models.generator import Generator, synthesize
from guide_jax.models.network import jitted


def make_encode(
    encoder: Any, generator: Generator
) -> Callable[[np.ndarray], jax.Array]:
    """Returns a jitted function from photos `[N, H, W, 3]` in [-1, 1] to w `[N, L, D]`.

    The encoder's output is added to its own mean code if it has one, otherwise to the
    generator's.

    Raises:
        InputError: the encoder's codes do not fit the generator.
    """
    # An encoder that outputs a single w fits every generator with the same W space.
    layers_fit = encoder.num_ws in (1, generator.num_ws)
    if not layers_fit or encoder.w_dim != generator.w_dim:
        raise InputError(
            f"the encoder outputs codes [{encoder.num_ws}, {encoder.w_dim}] but the"
            f" generator takes [{generator.num_ws}, {generator.w_dim}];"
            " check config.networks.encoder"
        )
    mean = encoder if hasattr(encoder, "w_avg") else generator.mapping
    w_avg = mean.w_avg[...]
    offset = jitted(encoder, lambda encoder, photo: encoder(photo))

    def encode(photo: np.ndarray) -> jax.Array:
        w = offset(photo)
        w = jnp.broadcast_to(w_avg, w.shape) + w
        return jnp.broadcast_to(w, (len(w), generator.num_ws, generator.w_dim))

    return encode


def make_refine(
    generator: Generator, lpips: nnx.Module, console: Console
) -> Callable[[jax.Array, np.ndarray, int, float], jax.Array]:
    """Returns a function (w, photo, steps, learning_rate) -> w that refines a code.

    Starting from the code `[1, L, D]`, Adam optimises the whole W+ code to minimise
    LPIPS plus mean squared error between the generated image and the photo
    `[1, H, W, 3]`. The best code found is returned, possibly the initial one. Refined
    codes may leave the face manifold, so their neighbourhood represents the person less
    well than the neighbourhood of the encoder's code.

    Args:
        generator: the generator.
        lpips: the LPIPS network.
        console: shows the progress bar.

    Raises:
        UnlearningError: raised by the returned function if no error is finite.
    """
    graph, state = nnx.split((generator.synthesis, lpips))

    def error(w, state, photo):
        synthesis, distance = nnx.merge(graph, state)
        image = synthesize(synthesis, w).images
        return distance(image, photo)[0] + jnp.mean((image - photo) ** 2)

    @jax.jit
    def step(w, best, opt_state, state, photo, learning_rate):
        value, grads = jax.value_and_grad(error)(w, state, photo)
        better = value < best[0]
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (value, w), best
        )
        updates, opt_state = optax.scale_by_adam().update(grads, opt_state)
        return w - learning_rate * updates, best, opt_state

    def refine(w, photo, steps, learning_rate):
        opt_state = optax.scale_by_adam().init(w)
        best = jnp.asarray(np.inf, jnp.float32), w
        with console.bar("refining the inversion", "step", steps) as bar:
            # One extra step, because each step measures the error before its update.
            for i in range(steps + 1):
                w, best, opt_state = step(
                    w, best, opt_state, state, photo, learning_rate
                )
                if i and (i % 10 == 0 or i == steps):
                    bar.update(i - bar.n)
                    bar.set_postfix(error=f"{float(best[0]):.4f}")
        if not np.isfinite(best[0]):
            raise UnlearningError(
                "refining the inversion failed: the error is never finite"
            )
        return best[1]

    return refine
