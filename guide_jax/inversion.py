"""Inverts photos: finds the code from which the generator reproduces the person.

See section 3.1 of the paper. The encoder gives a first code; refinement then searches
near the latents of the generator's own people, because codes far from them can show
anybody, and their neighbourhoods represent the person poorly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from guide_jax.config_types import Refine
from guide_jax.console import Console
from guide_jax.errors import InputError, UnlearningError
from guide_jax.models import arcface
from guide_jax.models.generator import Generator, synthesize
from guide_jax.models.network import jitted
from guide_jax.models.ops import LEAKY_SLOPE, channelwise

PEOPLE = 10_000  # random people from whom the prior is estimated
# Directions in which people vary less than this fraction of the largest standard
# deviation are treated as if they varied that much. They hardly change the image.
SMALLEST_SPREAD = 0.05
START = 2.0  # starting codes are clipped to this many standard deviations
CHECK_EVERY = 10  # steps between two updates of the progress bar
PATIENCE, LEAST_GAIN = 30, 0.01  # stops if the error fell by less than 1 % in 30 steps


def make_encode(
    encoder: Any, generator: Generator, dropout_seed: int | None = None
) -> Callable[[np.ndarray], jax.Array]:
    """Returns a jitted function from photos `[N, H, W, 3]` in [-1, 1] to w `[N, L, D]`.

    The encoder's output is added to its own mean code if it has one, otherwise to the
    generator's.

    Args:
        encoder: the inversion encoder.
        generator: the generator.
        dropout_seed: if set, the encoder is in training mode, as in the published code;
            only GOAE has such a mode. For `config.compat`.

    Raises:
        InputError: the encoder's codes do not fit the generator.
    """
    if not fits(encoder, generator):
        raise InputError(
            f"the encoder outputs codes [{encoder.num_ws}, {encoder.w_dim}] but the"
            f" generator takes [{generator.num_ws}, {generator.w_dim}];"
            " check config.networks.encoder"
        )
    mean = encoder if hasattr(encoder, "w_avg") else generator.mapping
    w_avg = mean.w_avg[...]
    mode = {} if dropout_seed is None else {"key": jax.random.key(dropout_seed)}
    offset = jitted(encoder, lambda encoder, photo: encoder(photo, **mode))

    def encode(photo: np.ndarray) -> jax.Array:
        w = offset(photo)
        w = jnp.broadcast_to(w_avg, w.shape) + w
        return jnp.broadcast_to(w, (len(w), generator.num_ws, generator.w_dim))

    return encode


def fits(encoder: Any, generator: Generator) -> bool:
    """Returns whether an encoder's codes are the generator's."""
    # An encoder that outputs a single w fits every generator with the same W space.
    layers_fit = encoder.num_ws in (1, generator.num_ws)
    return layers_fit and encoder.w_dim == generator.w_dim


class Prior(NamedTuple):
    """Where a generator's people are in W.

    Before the mapping network's last activation, a leaky ReLU, random people's latents
    are nearly normally distributed (Zhu et al., arXiv 2012.09036). Whitened there, a
    latent is a vector of standard deviations.

    Attributes:
        mean: mean latent before the activation, `[D]`.
        axes: principal directions, unit rows, `[D, D]`.
        spread: standard deviation along each direction, `[D]`.
        w_avg: mean latent, `[D]`.
        radius: random people's mean distance from it.
    """

    mean: jax.Array
    axes: jax.Array
    spread: jax.Array
    w_avg: jax.Array
    radius: jax.Array

    def whiten(self, w: jax.Array) -> jax.Array:
        """Maps latents `[..., D]` to standard deviations `[..., D]`."""
        before = jnp.where(w < 0, w / LEAKY_SLOPE, w)
        centred = before - channelwise(self.mean, w)
        return centred @ self.axes.T / channelwise(self.spread, w)

    def color(self, v: jax.Array) -> jax.Array:
        """Inverts `whiten`."""
        scaled = v * channelwise(self.spread, v)
        before = scaled @ self.axes + channelwise(self.mean, v)
        return jnp.where(before < 0, before * LEAKY_SLOPE, before)

    def distance(self, w: np.ndarray) -> np.ndarray:
        """Returns how far codes `[N, L, D]` are from the mean code, `[N]`.

        The unit is random people's mean distance; the root mean square over the layers.
        """
        square = np.sum(np.square(w - np.asarray(self.w_avg)), axis=2)  # [N, L]
        return np.sqrt(square.mean(axis=1)) / np.asarray(self.radius)


_whiten = jax.jit(Prior.whiten)


def make_prior(generator: Generator) -> Prior:
    """Estimates where a generator's random people are, without truncation."""
    z = np.random.default_rng(0).standard_normal((PEOPLE, generator.z_dim))
    first_layer = jitted(generator.mapping, lambda mapping, z: mapping(z)[:, 0])
    w = np.asarray(first_layer(z.astype(np.float32)))
    before = np.where(w < 0, w / LEAKY_SLOPE, w).astype(np.float64)
    mean = before.mean(axis=0)
    variance, axes = np.linalg.eigh(np.cov(before - mean, rowvar=False))
    spread = np.sqrt(np.maximum(variance, 0))
    spread = np.maximum(spread, SMALLEST_SPREAD * spread.max())
    w_avg = w.mean(axis=0)
    radius = np.linalg.norm(w - w_avg, axis=1).mean()
    parts = mean, axes.T, spread, w_avg, radius
    return Prior(*(jnp.asarray(x, jnp.float32) for x in parts))


def make_refine(
    generator: Generator,
    lpips: nnx.Module,
    identity: nnx.Module,
    prior: Prior,
    settings: Refine,
    console: Console,
) -> Callable[[jax.Array, np.ndarray, str], jax.Array]:
    """Returns a function (w, photo, name) -> w that refines a code.

    Starting from the code `[1, L, D]`, Adam minimises LPIPS plus mean squared error
    plus weighted identity distance (1 - cosine) between the generated image and the
    photo `[1, H, W, 3]`. The code is whitened by the prior. Its mean square (distance
    from the mean code) and the mean square of its differences between layers (distance
    from W) are penalised, so that the code stays where the generator has faces. The
    search ends early when it no longer improves, and the best code is returned. The
    progress bar shows the name.

    Args:
        generator: the generator.
        lpips: the LPIPS network.
        identity: an identity encoder that is not a judge.
        prior: from `make_prior`.
        settings: steps, learning rate and weights.
        console: shows the progress bar.

    Raises:
        UnlearningError: raised by the returned function if no error is finite.
    """
    graph, state = nnx.split((generator.synthesis, lpips, identity))
    adam = optax.scale_by_adam(b2=0.99)

    @jax.jit
    def wanted(state, photo):  # does not change from step to step
        _, lpips, identity = nnx.merge(graph, state)
        return photo, lpips.features(photo), arcface.embed(identity, photo)

    def error(v, state, prior, target):
        synthesis, lpips, identity = nnx.merge(graph, state)
        photo, features, embedding = target
        image = synthesize(synthesis, prior.color(v)).images
        cosine = jnp.sum(arcface.embed(identity, image) * embedding)
        between_layers = v - v.mean(axis=1, keepdims=True)
        return (
            lpips.distance(lpips.features(image), features)[0]
            + jnp.mean((image - photo) ** 2)
            + settings.id_weight * (1 - cosine)
            + settings.prior_weight * jnp.mean(v**2)
            + settings.layers_weight * jnp.mean(between_layers**2)
        )

    @jax.jit
    def step(v, best, opt_state, state, prior, target, learning_rate):
        value, grads = jax.value_and_grad(error)(v, state, prior, target)
        better = value < best[0]
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (value, v), best
        )
        updates, opt_state = adam.update(grads, opt_state)
        return v - learning_rate * updates, best, opt_state

    def refine(w, photo, name):
        v = jnp.clip(_whiten(prior, jnp.asarray(w)), -START, START)
        opt_state, target = adam.init(v), wanted(state, photo)
        best = jnp.asarray(np.inf, jnp.float32), v
        steps, errors = settings.steps, [np.inf]
        with console.bar(f"refining the inversion of {name}", "step", steps) as bar:
            # One extra step, because each step measures the error before its update.
            for i in range(steps + 1):
                # Falls to zero over the last half, so that the search settles.
                rate = settings.learning_rate * min(1.0, 2 * (1 - i / (steps + 1)))
                v, best, opt_state = step(
                    v, best, opt_state, state, prior, target, np.float32(rate)
                )
                if i and (i % CHECK_EVERY == 0 or i == steps):
                    bar.update(i - bar.n)
                    errors.append(float(best[0]))
                    bar.set_postfix(error=f"{errors[-1]:.4f}")
                    earlier = errors[max(0, len(errors) - 1 - PATIENCE // CHECK_EVERY)]
                    if errors[-1] > (1 - LEAST_GAIN) * earlier:
                        break
        if not np.isfinite(best[0]):
            raise UnlearningError(
                "refining the inversion failed: the error is never finite"
            )
        return _color(prior, best[1])

    return refine


_color = jax.jit(Prior.color)
