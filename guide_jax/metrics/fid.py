"""The paper's two FIDs of an unlearning (section 4.1), their halves kept for reuse."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from guide_jax.errors import UnlearningError
from guide_jax.metrics import fid_sources, fid_statistics
from guide_jax.metrics.identity import batches
from guide_jax.storage import fingerprint
from guide_jax.storage.network_file import network_hash


class FidMeasure:
    """FID_pre and delta FID_real of generators made from one original (section 4.1).

    Attributes:
        made_of: says all that the measures depend on, but for the generator measured.
    """

    def __init__(
        self,
        generator: nnx.Module,
        inception: nnx.Module,
        *,
        samples: int,
        psi: float,
        seed: int,
        batch: int,
        real: str,
        cache: Path,
        line: int | None = None,
    ):
        """Takes the statistics of the original and of real photos, or finds them.

        Args:
            generator: the original.
            inception: FID's network.
            samples: pictures of each generator, of the same latents; the paper's 5000.
            psi: their truncation.
            seed: of their draw.
            batch: pictures in one pass.
            real: a folder of photos, a file of features or statistics, or "tfds:NAME"
                of a tensorflow-datasets dataset; empty for no delta FID_real.
            cache: folder where statistics are kept by what they were made of.
            line: of the terminal, for progress bars, where others have some.

        Raises:
            InputError: the real photos can't be read.
        """
        self._features = fid_statistics.Features(inception, line=line)
        self._samples, self._seed, self._batch = samples, seed, batch
        self._z_dim = generator.z_dim
        graph = nnx.split(generator)[0]

        @jax.jit
        def draw(state, z):
            made = nnx.merge(graph, state)
            return made.synthesis(made.mapping(z, psi=psi))[0]

        self._draw = draw
        network = network_hash(inception)
        self._real, photos = None, ""
        if real:  # first, for a mistake in it is soon found
            self._real, photos = self._real_statistics(real, network, cache)
        drawn = f"{network_hash(generator)} {network} {samples} {psi} {seed}"
        self._before = fid_sources.cached(
            cache, drawn, lambda: self._statistics(generator, "FID, original")
        )
        self.made_of = f"{drawn} {photos}"

    def __call__(self, forgetful: nnx.Module) -> dict[str, float | int]:
        """Returns `fid_pre`, `fid_samples`, and `delta_fid_real` where it has photos.

        Raises:
            UnlearningError: the generator's pictures are not finite.
        """
        after = self._statistics(forgetful, "FID, forgetful")
        found = {"fid_pre": fid_statistics.distance(self._before, after)}
        if self._real:
            before = fid_statistics.distance(self._real, self._before)
            found["delta_fid_real"] = (
                fid_statistics.distance(self._real, after) - before
            )
        return found | {"fid_samples": self._samples}

    def _statistics(
        self, generator: nnx.Module, label: str
    ) -> fid_statistics.Statistics:
        state = nnx.state(generator)
        rng = np.random.default_rng(self._seed)
        z = rng.standard_normal((self._samples, self._z_dim)).astype(np.float32)

        def pictures() -> Iterator[np.ndarray]:
            for part, count in batches(z, self._batch):
                images = np.asarray(self._draw(state, part))[:count]
                if not np.isfinite(images).all():
                    raise UnlearningError(
                        f"{label}: the generator's pictures are not finite; a lower"
                        " learning rate may help"
                    )
                yield images

        return self._features.of_images(pictures(), self._samples, label)

    def _real_statistics(
        self, real: str, network: str, cache: Path
    ) -> tuple[fid_statistics.Statistics, str]:
        """Returns the statistics, and what they were made of."""
        path = Path(real)
        if real.startswith("tfds:"):
            contents, name = real, real.removeprefix("tfds:")

            def compute() -> fid_statistics.Statistics:
                return fid_sources.of_dataset(self._features, name)

        elif path.is_dir():
            contents = fid_sources.hash_files(fid_sources.image_files(path))

            def compute() -> fid_statistics.Statistics:
                return fid_sources.of_folder(self._features, path)[0]

        else:
            return fid_sources.read_statistics(path), fingerprint.of_file(path)
        return fid_sources.cached(cache, f"{network} {contents}", compute), contents
