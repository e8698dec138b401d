"""FID (arXiv 1706.08500): the distance between two sets of images in feature space.

Each set is summarised by the mean and covariance of its features; FID is the Frechet
distance between the Gaussians with these means and covariances.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.batching import rebatch
from guide_jax.console import Console
from guide_jax.models.inception import INPUT_SIZE
from guide_jax.models.network import jitted
from guide_jax.models.resample import resize

BATCH = 16  # images in one pass of the network


class Statistics(NamedTuple):
    """Feature statistics of a set of images.

    Attributes:
        mean: `[F]` float64.
        covariance: `[F, F]` float64, with count - 1 degrees of freedom.
        count: number of images; 0 if unknown, because the file does not store it.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int  # type: ignore[assignment]  # hides tuple.count, which is unused

    @classmethod
    def of(cls, features: np.ndarray) -> "Statistics":
        """Returns the statistics of features `[N, F]`; raises as `Accumulator` does."""
        accumulator = Accumulator()
        accumulator.add(features)
        return accumulator.statistics()


class Accumulator:
    """Accumulates the statistics of features batch by batch, in float64.

    It updates the mean and the scatter matrix of deviations from it. Unlike a sum of
    squares, these lose no precision when the mean is large.

    Attributes:
        count: number of images whose features were added.
    """

    def __init__(self):
        self.count = 0
        self._mean = self._scatter = np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """Adds features `[n, F]`.

        Raises:
            ValueError: the shape is wrong, a feature is not finite, or F differs from
                earlier calls.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"features have shape {list(x.shape)}, not [N, F]")
        if not np.isfinite(x).all():
            raise ValueError("features are not finite")
        mean = x.mean(0)
        self._merge(len(x), mean, x - mean)

    def merge(self, other: "Accumulator") -> None:
        """Adds another accumulator's features; raises ValueError if F differs."""
        if other.count:
            self._merge(other.count, other._mean, np.zeros((0, len(other._mean))))
            self._scatter += other._scatter

    def statistics(self) -> Statistics:
        """Returns the statistics so far; features added later do not change them.

        Raises:
            ValueError: fewer than two images were added.
        """
        if self.count < 2:
            raise ValueError(f"FID needs at least two images, not {self.count}")
        covariance = self._scatter / (self.count - 1)
        return Statistics(self._mean.copy(), covariance, self.count)

    def _merge(self, count: int, mean: np.ndarray, deviations: np.ndarray) -> None:
        """Merges the mean of `count` features and their deviations from that mean."""
        if not self.count:
            self._mean = np.zeros(len(mean))
            self._scatter = np.zeros((len(mean), len(mean)))
        if mean.shape != self._mean.shape:
            raise ValueError(f"expected {len(self._mean)} features, got {len(mean)}")
        total = self.count + count
        way = mean - self._mean
        # The difference between the two means contributes one more row.
        between = np.sqrt(self.count / total * count) * way
        rows = np.concatenate([deviations, between[None]])
        self._scatter += rows.T @ rows
        self._mean += way * (count / total)
        self.count = total


def distance(a: Statistics, b: Statistics) -> float:
    """Returns FID: the squared Frechet distance between two Gaussians.

    FID = |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The trace of (A B)^(1/2) is
    computed as the sum of the singular values of A^(1/2) B^(1/2). Unlike a matrix root
    of A B, this is exact even with fewer images than features, and never complex.

    Raises:
        ValueError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot compare {len(a.mean)} with {len(b.mean)} features")
    product = _root(a.covariance) @ _root(b.covariance).T
    shared = np.linalg.svd(product, compute_uv=False).sum()
    way = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(way @ way + traces - 2 * shared))


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R `[rank, F]` such that R.T @ R is the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # Smaller eigenvalues are rounding errors, and may be negative.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


class Features:
    """Computes features of many images, in batches of one size."""

    def __init__(
        self, network: nnx.Module, batch: int = BATCH, console: Console | None = None
    ):
        """Prepares the pass, which is compiled once for images of all sizes.

        Args:
            network: `Inception`, or another network that maps `[N, 299, 299, 3]` to
                `[N, F]`.
            batch: images in one pass.
            console: shows progress bars.
        """
        self._batch, self._console = batch, console or Console()
        self._run = jitted(network, lambda network, x: network(x))

    def __call__(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Returns features `[N, F]`, float32, of images `[N, H, W, 3]` in [-1, 1]."""
        return np.concatenate(list(self._passes([prepare(images)])))

    def of_images(
        self,
        batches: Iterable[np.ndarray | jax.Array],
        total: int | None = None,
        label: str = "FID",
    ) -> Statistics:
        """Returns the statistics of images in memory, such as a generator's.

        Args:
            batches: images `[n, H, W, 3]` in [-1, 1]. They are rounded to 256 levels,
                as if they had been saved to files.
            total: number of images, for the progress bar.
            label: the progress bar's label.

        Raises:
            ValueError: there are fewer than two images, or a feature is not finite.
        """
        return self.of_inputs(map(prepare, batches), total, label)

    def of_inputs(
        self, inputs: Iterable[np.ndarray], total: int | None = None, label: str = "FID"
    ) -> Statistics:
        """As `of_images`, for images `[n, 299, 299, 3]` prepared for the network."""
        accumulator = Accumulator()
        with self._console.bar(label, "image", total) as bar:
            for features in self._passes(inputs):
                accumulator.add(features)
                bar.update(len(features))
        return accumulator.statistics()

    def _passes(self, inputs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in rebatch(inputs, self._batch):
            padding = [(0, self._batch - len(batch)), (0, 0), (0, 0), (0, 0)]
            found = self._run(np.pad(batch, padding, "edge"))
            yield np.asarray(found)[: len(batch)]


@jax.jit
def prepare(images: jax.Array) -> jax.Array:
    """Rounds images `[N, H, W, 3]` in [-1, 1] to 256 levels; resizes to 299 x 299."""
    levels = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5)
    return resize(levels / 127.5 - 1, INPUT_SIZE)
