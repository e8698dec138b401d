"""FID (arXiv 1706.08500): how far two sets of images are apart, as features see them.

Each set is reduced to the mean and the covariance of its features; FID is the Frechet
distance of the two Gaussians that have them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax import console
from guide_jax.models.inception import INPUT_SIZE
from guide_jax.models.resample import resize
from guide_jax.storage.locate import jitted

BATCH = 16  # images in one pass of the network


class Statistics(NamedTuple):
    """What FID keeps of a set of images.

    Attributes:
        mean: `[F]` float64.
        covariance: `[F, F]` float64, of count - 1 degrees of freedom.
        count: how many images; 0 where a file doesn't say it.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> "Statistics":
        """Returns the statistics of features `[N, F]`; raises as `Accumulator`."""
        accumulator = Accumulator()
        accumulator.add(features)
        return accumulator.statistics()


class Accumulator:
    """Statistics of features that come a batch at a time, in float64.

    It keeps the mean and the sum of products of deviations from it, which lose nothing
    where the mean is large, as a sum of squares would.

    Attributes:
        count: how many features were added.
    """

    def __init__(self):
        self.count = 0
        self._mean = self._scatter = np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """Adds features `[n, F]`.

        Raises:
            ValueError: they are not of that form, not finite, or F is another than
                before.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"features have shape {list(x.shape)}, not [N, F]")
        if not np.isfinite(x).all():
            raise ValueError("features are not finite")
        mean = x.mean(0)
        self._merge(len(x), mean, x - mean)

    def merge(self, other: "Accumulator") -> None:
        """Adds what another one has seen; raises ValueError where F differs."""
        if other.count:
            self._merge(other.count, other._mean, np.zeros((0, len(other._mean))))
            self._scatter += other._scatter

    def statistics(self) -> Statistics:
        """Returns what was seen; raises ValueError where it was less than two images.

        It stays as it is, whatever is added later.
        """
        if self.count < 2:
            raise ValueError(f"FID needs two images at least, not {self.count}")
        covariance = self._scatter / (self.count - 1)
        return Statistics(self._mean.copy(), covariance, self.count)

    def _merge(self, count: int, mean: np.ndarray, deviations: np.ndarray) -> None:
        """Adds a mean of `count` and rows whose products are summed."""
        if not self.count:
            self._mean = np.zeros(len(mean))
            self._scatter = np.zeros((len(mean), len(mean)))
        if mean.shape != self._mean.shape:
            raise ValueError(f"{len(mean)} features after {len(self._mean)}")
        total = self.count + count
        way = mean - self._mean
        # The means' own deviation is one row more.
        between = np.sqrt(self.count / total * count) * way
        rows = np.concatenate([deviations, between[None]])
        self._scatter += rows.T @ rows
        self._mean += way * (count / total)
        self.count = total


def distance(a: Statistics, b: Statistics) -> float:
    """Returns the Frechet distance of two Gaussians, squared as FID is.

    That is |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The last root's trace is
    the sum of the singular values of A^(1/2) B^(1/2): unlike the root of A B, that is
    exact where there are fewer images than features, and never complex.

    Raises:
        ValueError: they are of different features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"FID of {len(a.mean)} and of {len(b.mean)} features")
    product = _root(a.covariance) @ _root(b.covariance).T
    shared = np.linalg.svd(product, compute_uv=False).sum()
    way = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(way @ way + traces - 2 * shared))


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns R `[rank, F]` with R.T @ R the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    # Below this an eigenvalue is rounding error, whose root would be none.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


class Features:
    """Runs the features' network over many images, in batches of one size."""

    def __init__(
        self, network: nnx.Module, batch: int = BATCH, line: int | None = None
    ):
        """Prepares the pass; it is compiled once, whatever the images' sizes.

        Args:
            network: `Inception`, or another that maps `[N, 299, 299, 3]` to `[N, F]`.
            batch: images in one pass.
            line: of the terminal, for progress bars, where others have some.
        """
        self._batch, self._line = batch, line
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
        """Returns the statistics of images that no file holds.

        Args:
            batches: `[n, H, W, 3]` each, in [-1, 1]. They are rounded to the 256 levels
                that a file would have.
            total: how many images will come, for the progress bar.
            label: what the progress bar says.

        Raises:
            ValueError: there are less than two images, or not finite ones.
        """
        return self.of_inputs(map(prepare, batches), total, label)

    def of_inputs(
        self, inputs: Iterable[np.ndarray], total: int | None = None, label: str = "FID"
    ) -> Statistics:
        """As `of_images`, of images `[n, 299, 299, 3]` as the network takes them."""
        accumulator = Accumulator()
        with console.bar(label, "image", total, self._line) as bar:
            for features in self._passes(inputs):
                accumulator.add(features)
                bar.update(len(features))
        return accumulator.statistics()

    def _passes(self, inputs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in _regroup(inputs, self._batch):
            padding = [(0, self._batch - len(batch)), (0, 0), (0, 0), (0, 0)]
            found = self._run(np.pad(batch, padding, "edge"))
            yield np.asarray(found)[: len(batch)]


@jax.jit
def prepare(images: jax.Array) -> jax.Array:
    """Rounds images `[N, H, W, 3]` in [-1, 1] as to uint8; resizes to 299 x 299."""
    levels = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5)
    return resize(levels / 127.5 - 1, INPUT_SIZE)


def _regroup(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cuts batches of any lengths into batches of one; the last may be shorter."""
    held = []
    for batch in batches:
        held += list(np.asarray(batch))
        while len(held) >= size:
            yield np.stack(held[:size])
            held = held[size:]
    if held:
        yield np.stack(held)
