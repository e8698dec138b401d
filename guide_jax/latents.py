"""Computes a person's latent code and its target."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guide_jax import inversion, target
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import InputError
from guide_jax.faces.align import Prepared, prepare_photo
from guide_jax.models.generator import make_mapping, z_of_seed
from guide_jax.people import Person
from guide_jax.storage.locate import Networks


class Codes(NamedTuple):
    """A person's latent codes.

    Attributes:
        w_u: the codes to forget, `[P, L, D]`.
        w_target: their targets, `[P, L, D]`.
        tests: the codes of the person's other photos, `[T, L, D]`.
    """

    w_u: np.ndarray
    w_target: np.ndarray
    tests: np.ndarray


class Found(NamedTuple):
    """What a person's photos, or seed, gave.

    Attributes:
        codes: the person's.
        skipped: a line for each test photo that could not be used.
        photo: the aligned photo `[1, H, W, 3]`; None for a sampled person.
    """

    codes: Codes
    skipped: list[str]
    photo: np.ndarray | None


class LatentFinder:
    """Computes people's codes, with passes that are compiled once."""

    def __init__(
        self, config: Config, networks: Networks, console: Console | None = None
    ):
        """Prepares the mapping, and the inversion if there is an encoder.

        Args:
            config: the run's settings.
            networks: the run's networks.
            console: prints lines and progress bars.

        Raises:
            InputError: the encoder's codes do not fit the generator.
        """
        self._config, self._console = config, console or Console()
        self._generator = networks["generator"]
        self._detector = networks.get("detector")
        self._mapping = make_mapping(self._generator, config.source.psi)
        if encoder := networks.get("encoder"):
            self._encode = inversion.make_encode(encoder, self._generator)
            self._refine = inversion.make_refine(
                self._generator, networks["lpips"], self._console
            )

    def __call__(self, person: Person) -> Found:
        """Inverts a person's photos, or maps the person's seed to a code.

        Raises:
            InputError: the photo cannot be used, or the code has no target.
            UnlearningError: refinement never reached a finite error.
        """
        generator = self._generator
        tests, skipped = [], []
        photo = None
        if person.photo:
            w_u, photo = self._invert(person.photo)
            for path in person.tests:
                try:
                    tests.append(self._invert(path)[0])
                except InputError as error:
                    skipped.append(str(error))
        else:
            assert person.seed is not None  # a person has a photo or a seed
            w_u = self._mapping(z_of_seed(person.seed, generator.z_dim))
        settings = self._config.target
        w_avg = generator.mapping.w_avg[...]
        w_target = target.TARGETS[settings.name](
            jnp.asarray(w_u), w_avg, settings.distance
        )
        if not np.isfinite(w_target).all():
            raise InputError(
                "the person's code equals the mean code, so it has no direction to move"
                " in; choose another config.source.seed, or config.source.psi above 0"
            )
        none = np.zeros((0, generator.num_ws, generator.w_dim), np.float32)
        codes = Codes(*map(np.asarray, (w_u, w_target, np.concatenate([none, *tests]))))
        return Found(codes, skipped, photo)

    def random(self, seed: int, count: int) -> np.ndarray:
        """Returns random people's codes `[count, L, D]`, truncated by source.psi."""
        z = jax.random.normal(jax.random.key(seed), (count, self._generator.z_dim))
        return np.asarray(self._mapping(z))

    def photo(self, path: Path) -> Prepared:
        """Returns a photo prepared for the encoder, and a note on its alignment."""
        side, align = self._generator.resolution, self._config.source.align
        return prepare_photo(path, self._detector, side, align)

    def _invert(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        photo, note = self.photo(path)
        if note:
            self._console.say(note)
        w = self._encode(photo)
        refine = self._config.source.refine
        if refine.steps:
            w = self._refine(w, photo, refine.steps, refine.learning_rate)
        return np.asarray(w), photo
