"""The interface of a face generator, and the one pass from latents to images.

StyleGAN2, MobileStyleGAN and EG3D implement it. EG3D is seen from the front unless it
gets a camera as `view`, so code that shows it from one side only, like code for 2D
generators, needs no camera. All code generates images through `synthesize` or
`ImagePass`, which pass the view on.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from guide_jax import batching
from guide_jax.models.network import jitted
from guide_jax.models.shapes import Array

# Training changes the leaves of this type in the synthesis network.
TRAINABLE = nnx.Param


@runtime_checkable
class Generator(Protocol):
    """A face generator.

    Attributes:
        kind: the generator's name in `models.NETWORKS`.
        resolution: side of the image in pixels.
        z_dim: Z, length of the mapping's input.
        w_dim: D, length of a style vector.
        num_ws: L, the number of style vectors.
        mapping: a network (z `[N, Z]`, psi) -> w `[N, L, D]`, with the mean code
            `w_avg`.
        synthesis: a network (w `[N, L, D]`, dtype, **view) -> images `[N, H, W, 3]`,
            and a dict of activations by name. StyleGAN2's and EG3D's also take
            `noise_seed`. Its `affine_layers()` are the trainable
            layers that read style vectors, each with the index of its style vector.
        feature_name: name of the activation that the loss compares: that which the last
            output head reads, or a 3D generator's planes.
    """

    kind: str
    resolution: int
    z_dim: int
    w_dim: int
    num_ws: int
    mapping: Any
    synthesis: Any

    @property
    def feature_name(self) -> str:
        """The name of the activation that the loss compares."""
        ...


class Synthesized(NamedTuple):
    """The output of a synthesis network.

    Attributes:
        images: `[N, H, W, 3]`, approximately in [-1, 1], not clipped.
        features: the activation that the loss compares, `[N, h, w, C]`.
    """

    images: Float[Array, "N H W 3"]
    features: Float[Array, "N h w C"]


def synthesize(
    synthesis: Any,
    w: Float[Array, "... L D"],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    **view: Array,
) -> Synthesized:
    """Runs a synthesis network.

    Args:
        synthesis: a generator's synthesis network.
        w: latents `[N, L, D]`.
        dtype: dtype of the convolutions; None for the parameters' dtype.
        view: camera arguments, for generators that have a camera.
    """
    images, activations = synthesis(w, dtype=dtype, **view)
    return Synthesized(images, activations[synthesis.feature_name])


def view_drawer(
    generator: Generator,
) -> Callable[[jax.Array, int], dict[str, jax.Array]]:
    """Returns a function (key, N) -> the view of a training step, N rows.

    A generator that has a camera draws it by its method `draw_view`; others draw
    nothing, and the view is empty.
    """
    return getattr(generator, "draw_view", lambda key, N: {})


def views_of_samples(generator: Generator, seed: int, N: int) -> dict[str, Array]:
    """Returns a random view for each of N sampled images, N rows; empty in 2D.

    A generator that has a camera draws them by its method `views_of_samples`.
    """
    draw: Any = getattr(generator, "views_of_samples", lambda seed, N: {})
    return draw(seed, N)


def views_to_judge(generator: Generator) -> dict[str, Array]:
    """Returns the views that a person is judged from, a row each; empty in 2D.

    A generator that has a camera gives them by its method `views_to_judge`.
    """
    views = getattr(generator, "views_to_judge", dict)
    return views()


class ImagePass:
    """A compiled pass from latents to images, for generators of one architecture.

    Weights are arguments, so the original and every unlearned copy share one program.
    """

    def __init__(self, generator: Generator, batch: int, random_noise: bool = False):
        """Prepares the pass.

        Args:
            generator: any generator of the architecture.
            batch: number of images in one pass.
            random_noise: whether noise is drawn instead of the stored noise, another
                one for this generator than for all others; for `config.compat`.
        """
        graph, _ = nnx.split(generator.synthesis)
        self.batch = batch
        self._generator, self._random_noise = generator, random_noise

        @jax.jit
        def images(
            state: nnx.State, w: jax.Array, view: dict[str, jax.Array]
        ) -> jax.Array:
            return synthesize(nnx.merge(graph, state), w, **view).images

        self._images = images

    def __call__(
        self,
        generator: Generator,
        w: Float[Array, "N L D"] | Float[np.ndarray, "N L D"],
        **view: Array | np.ndarray,
    ) -> Float[np.ndarray, "N H W 3"]:
        """Generates images `[N, H, W, 3]`.

        Args:
            generator: of the architecture.
            w: latents `[N, L, D]`.
            view: camera arguments, one row for each latent, for generators that have a
                camera.
        """
        state = nnx.state(generator.synthesis)
        if self._random_noise:
            # The same for the same codes, whatever was generated before.
            drawn = [zlib.crc32(np.asarray(w).tobytes()), generator is self._generator]
            seeds = np.random.default_rng(drawn).integers(1 << 32, size=len(w))
            view["noise_seed"] = seeds.astype(np.uint32)

        def images(w: np.ndarray, *views: np.ndarray) -> jax.Array:
            return self._images(state, w, dict(zip(view, views, strict=True)))

        arrays = (np.asarray(x) for x in (w, *view.values()))
        return batching.in_batches(images, self.batch, *arrays)


def make_mapping(generator: Generator, psi: float = 1.0) -> Callable:
    """Returns a jitted function from z `[N, Z]` to w `[N, L, D]`, truncated by psi."""
    return jitted(generator.mapping, lambda mapping, z: mapping(z, psi=psi))


def mean_style(generator: Generator) -> Float[np.ndarray, " D"]:
    """Returns the style of the mean code, which is the same in all layers."""
    return np.asarray(generator.mapping.w_avg[...]).reshape(-1, generator.w_dim)[0]


def z_of_seed(seed: int, z_dim: int) -> Float[np.ndarray, "1 Z"]:
    """Returns a seed's z `[1, Z]`, float32, which is the same on every machine."""
    return np.random.default_rng(seed).standard_normal((1, z_dim)).astype(np.float32)
