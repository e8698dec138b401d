"""The paper's two FID measures (section 4.1), with statistics cached between runs."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from guide_jax.batching import batches
from guide_jax.config_types import Evaluate
from guide_jax.console import Console
from guide_jax.errors import UnlearningError
from guide_jax.metrics import fid_sources, fid_statistics
from guide_jax.metrics.fid_statistics import Statistics
from guide_jax.models.generator import Generator, synthesize, views_of_samples
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import Networks


class FidMeasure:
    """Measures FID_pre and delta FID_real of generators derived from one original.

    Attributes:
        made_of: identifies everything that the measures depend on, except the generator
            being measured.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Evaluate,
        *,
        psi: float,
        cache: Path,
        random_noise: bool = False,
        console: Console | None = None,
    ):
        """Computes the statistics of the original and of real photos, or loads them.

        A 3D generator's images each have a view of their own, as published.

        Args:
            networks: the run's networks, of which "generator" (the original) and
                "inception" are used.
            settings: `fid_samples` images of each generator (5000 in the paper) are
                generated from the same latents and compared with each other, and with
                the photos of `fid_real` if it is set.
            psi: truncation of the latents.
            cache: folder for statistics.
            random_noise: whether each generator's noise is drawn instead of the stored
                noise; for `config.compat`.
            console: shows progress bars.

        Raises:
            InputError: the real photos cannot be read.
        """
        generator = networks["generator"]
        self._features = fid_statistics.Features(
            networks["inception"], console=console or Console()
        )
        self._samples, self._seed = settings.fid_samples, settings.seed
        self._batch, self._z_dim = settings.batch, generator.z_dim
        graph = nnx.split(generator)[0]
        self._views = views_of_samples(generator, self._seed, self._samples)
        self._random_noise = random_noise
        names = *self._views, *["noise_seed"] * random_noise

        @jax.jit
        def draw(state: nnx.State, z: jax.Array, *view: jax.Array) -> jax.Array:
            made = nnx.merge(graph, state)
            views = dict(zip(names, view, strict=True))
            return synthesize(made.synthesis, made.mapping(z, psi=psi), **views).images

        self._draw = draw
        network = networks.hashes["inception"]
        self._real, photos = None, ""
        if settings.fid_real:  # first, to report mistakes early
            self._real, photos = self._real_statistics(
                settings.fid_real, network, cache
            )
        original = networks.hashes["generator"]
        drawn = f"{original} {network} {self._samples} {psi} {self._seed}"
        if names:
            drawn += f" {names}"
        self._before = fid_sources.cached(
            cache, drawn, lambda: self._statistics(generator, "FID, original", 0)
        )
        self.made_of = f"{drawn} {photos}"

    def __call__(self, unlearned: Generator) -> dict[str, float | int]:
        """Returns `fid_pre`, `fid_samples`, and with real photos `delta_fid_real`.

        Raises:
            UnlearningError: the generator's images are not finite.
        """
        after = self._statistics(unlearned, "FID, unlearned", self._samples)
        found: dict[str, float | int] = {
            "fid_pre": fid_statistics.distance(self._before, after)
        }
        if self._real:
            before = fid_statistics.distance(self._real, self._before)
            grown = fid_statistics.distance(self._real, after) - before
            found["delta_fid_real"] = grown
        return found | {"fid_samples": self._samples}

    def _statistics(self, generator: Generator, label: str, noise: int) -> Statistics:
        """Returns statistics of a generator's images; `noise` is the first seed."""
        state = nnx.state(generator)
        rng = np.random.default_rng(self._seed)
        z = rng.standard_normal((self._samples, self._z_dim)).astype(np.float32)

        def images() -> Iterator[np.ndarray]:
            rows = [z, *map(np.asarray, self._views.values())]
            if self._random_noise:
                rows.append(np.arange(noise, noise + self._samples, dtype=np.uint32))
            split = (batches(x, self._batch) for x in rows)
            for parts in zip(*split, strict=True):
                made = self._draw(state, *(part for part, _ in parts))
                made = np.asarray(made)[: parts[0][1]]
                if not np.isfinite(made).all():
                    raise UnlearningError(
                        f"{label}: the generator's images are not finite; try a lower"
                        " config.optimizer.learning_rate"
                    )
                yield made

        return self._features.of_images(images(), self._samples, label)

    def _real_statistics(
        self, real: str, network: str, cache: Path
    ) -> tuple[Statistics, str]:
        """Returns the photos' statistics, and a string that identifies the photos."""
        path = Path(real)
        if real.startswith("tfds:"):
            contents, name = real, real.removeprefix("tfds:")

            def compute() -> Statistics:
                return fid_sources.of_dataset(self._features, name)

        elif path.is_dir():
            contents = fid_sources.hash_files(fid_sources.image_files(path))

            def compute() -> Statistics:
                return fid_sources.of_folder(self._features, path)[0]

        else:
            return fid_sources.read_statistics(path), fingerprint.of_file(path)
        return fid_sources.cached(cache, f"{network} {contents}", compute), contents
