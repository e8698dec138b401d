"""Where in latent space a person is, and whereto: by inversion, or by a seed."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from guide_jax import inversion, target
from guide_jax.errors import InputError
from guide_jax.faces import photos
from guide_jax.faces.align import prepare_photo
from guide_jax.people import Person
from guide_jax.storage.locate import make_mapping
from guide_jax.storage.run_folder import Codes


class Coder:
    """Finds people's codes, with the passes compiled once."""

    def __init__(
        self,
        config: ConfigDict,
        networks: dict[str, nnx.Module],
        line: int | None = None,
        say: Callable[[str], None] = print,
    ):
        """Prepares the inversion, where the networks hold an encoder.

        Args:
            config: as `configs/default.py` describes it.
            networks: from `load_networks`.
            line: of the terminal, for progress bars, where others have some.
            say: prints a line.

        Raises:
            InputError: the encoder belongs to another generator.
        """
        self._config, self._say = config, say
        self._generator = networks["generator"]
        self._detector = networks.get("detector")
        self._mapping = make_mapping(self._generator, config.source.psi)
        if "encoder" in networks:
            self._encode = inversion.make_encode(networks["encoder"], self._generator)
            self._refine = inversion.make_refine(
                self._generator, networks["lpips"], line
            )

    def __call__(self, person: Person) -> tuple[Codes, list[str]]:
        """Inverts the photos, or samples the person that the seed says.

        Returns:
            The codes, and a line for each test photo that can't be used.

        Raises:
            InputError: the photo can't be used, or no direction leads away.
            UnlearningError: the refinement's errors are not finite.
        """
        generator = self._generator
        tests, skipped = [], []
        if person.photo:
            w_u = self._invert(person.photo)
            for path in person.tests:
                try:
                    tests.append(self._invert(path))
                except InputError as error:
                    skipped.append(str(error))
        else:
            z = photos.z_of_seed(person.seed, generator.z_dim)
            w_u = self._mapping(z)
        settings = self._config.target
        w_avg = generator.mapping.w_avg[...]
        w_target = target.TARGETS[settings.name](w_u, w_avg, settings.distance)
        if not np.isfinite(w_target).all():
            raise InputError(
                "the person's code is the mean w itself, from which no direction leads"
                " away; choose another config.source.seed, or source.psi above 0"
            )
        none = np.zeros((0, generator.num_ws, generator.w_dim), np.float32)
        codes = Codes(*map(np.asarray, (w_u, w_target, np.concatenate([none, *tests]))))
        return codes, skipped

    def drawn(self, seed: int, count: int) -> np.ndarray:
        """Returns the codes `[count, L, D]` of random people, by config.source.psi."""
        z = jax.random.normal(jax.random.key(seed), (count, self._generator.z_dim))
        return np.asarray(self._mapping(z))

    def photo(self, path: Path) -> tuple[np.ndarray, str]:
        """Returns a photo `[1, H, W, 3]`, and what was done to align it."""
        side, align = self._generator.resolution, self._config.source.align
        return prepare_photo(path, self._detector, side, align)

    def _invert(self, path: Path) -> np.ndarray:
        photo, note = self.photo(path)
        if note:
            self._say(note)
        w = self._encode(photo)
        refine = self._config.source.refine
        if refine.steps:
            w = self._refine(w, photo, refine.steps, refine.learning_rate)
        return np.asarray(w)
