"""From a photo to the code of a person that a generator shows (section 3.1)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from guide_jax import console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.storage.locate import jitted


def make_encode(
    encoder: nnx.Module, generator: nnx.Module
) -> Callable[[np.ndarray], jax.Array]:
    """Returns the jitted pass from photos `[N, H, W, 3]` in [-1, 1] to `[N, L, D]`.

    Codes are relative to the encoder's own mean code, where it has one, and else to the
    generator's.

    Raises:
        InputError: the encoder belongs to another generator.
    """
    # An encoder of one w serves every generator of its W space.
    layers_fit = encoder.num_ws in (1, generator.num_ws)
    if not layers_fit or encoder.w_dim != generator.w_dim:
        raise InputError(
            f"the encoder gives codes [{encoder.num_ws}, {encoder.w_dim}], the"
            f" generator takes [{generator.num_ws}, {generator.w_dim}];"
            " check config.networks.encoder"
        )
    mean = encoder if hasattr(encoder, "w_avg") else generator.mapping
    w_avg = mean.w_avg[...]
    offset = jitted(encoder, lambda encoder, photo: encoder(photo))

    def encode(photo: np.ndarray) -> jax.Array:
        w = w_avg + offset(photo)
        return jnp.broadcast_to(w, (len(w), generator.num_ws, generator.w_dim))

    return encode


def make_refine(
    generator: nnx.Module, lpips: nnx.Module, line: int | None = None
) -> Callable[[jax.Array, np.ndarray, int, float], jax.Array]:
    """Returns a function (w, photo, steps, learning_rate) -> w.

    From the code `[1, L, D]` on, it looks for the one whose picture is nearest to the
    photo `[1, H, W, 3]`: Adam on the whole W+ code, on LPIPS plus the mean squared
    error. The best code on the way is returned, which may be the first. One that is
    found so can lie where the generator has no faces: its neighbours say less about the
    person than the encoder's. `line` is the terminal's, for the progress bar, where
    others have some.

    Raises:
        UnlearningError: from the function, where the first code's error is not finite.
    """
    graph, state = nnx.split((generator.synthesis, lpips))

    def error(w, state, photo):
        synthesis, distance = nnx.merge(graph, state)
        image, _ = synthesis(w)
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
        with console.bar("refining the inversion", "step", steps, line) as bar:
            # One more, for a step's error is measured before it.
            for i in range(steps + 1):
                w, best, opt_state = step(
                    w, best, opt_state, state, photo, learning_rate
                )
                if i and (i % 10 == 0 or i == steps):
                    bar.update(i - bar.n)
                    bar.set_postfix(error=f"{float(best[0]):.4f}")
        if not np.isfinite(best[0]):
            raise UnlearningError("refining the inversion: no error is finite")
        return best[1]

    return refine
