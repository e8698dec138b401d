"""Computes a person's latent codes and their target."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guide_jax import batching, inversion, target
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.erasure import Eraser
from guide_jax.errors import InputError, UnlearningError
from guide_jax.faces.align import Prepared, prepare_photo
from guide_jax.faces.variants import MIRRORED, variants
from guide_jax.models import arcface
from guide_jax.models.generator import ImagePass, make_mapping, z_of_seed
from guide_jax.models.network import jitted
from guide_jax.people import Person
from guide_jax.search import Search
from guide_jax.storage.locate import Networks

CROWD, CROWD_SEED = 2000, 9001  # number and seed of people for the covariance
CANDIDATES, CANDIDATE_SEED = 64, 9002  # number and seed of possible replacements
# Of the search for what is left of an erased person: learning rate in standard
# deviations of the generator's people, and codes at a time.
SEARCH_RATE, SEARCHED = 0.05, 4


class Codes(NamedTuple):
    """A person's latent codes.

    Attributes:
        w_u: the codes to forget, `[P, L, D]`: one for each photo that was used, then
            those of altered copies. For a sampled person, the person's code. To erase,
            then the encoder's codes of the photos, or the image, and of altered copies.
        w_target: their targets, `[P, L, D]`; with the paper's method, all rows are
            equal.
        tests: the codes of the person's other photos, `[T, L, D]`.
    """

    w_u: np.ndarray
    w_target: np.ndarray
    tests: np.ndarray


class Photos(NamedTuple):
    """Aligned photos, and where they come from.

    Attributes:
        paths: their files.
        images: `[n, H, W, 3]` float32 in [-1, 1].
    """

    paths: tuple[Path, ...]
    images: np.ndarray


class Found(NamedTuple):
    """What a person's photos, or seed, gave.

    Attributes:
        codes: the person's.
        skipped: a line for each photo that could not be used.
        photos: the photos from which the person is forgotten; empty for a sampled
            person.
        tests: the photos that test it.
        changes: to erase, how codes change, `[L, D, D]`.
    """

    codes: Codes
    skipped: list[str]
    photos: Photos
    tests: Photos
    changes: np.ndarray | None = None


class _Given(NamedTuple):
    """What is known of a person before the targets.

    Attributes:
        found: with the codes in place of their targets.
        mean: the mean code of the person's photos `[1, L, D]`.
        groups: each code's group `[P]`.
        shown: images of the person `[n, H, W, 3]`, to search for.
        starts: where the search for each of them starts, `[n, L, D]`.
    """

    found: Found
    mean: np.ndarray
    groups: np.ndarray
    shown: np.ndarray
    starts: np.ndarray


def _ignore(found: Found) -> None:
    """Does nothing with what was found."""


class LatentFinder:
    """Computes people's codes, with passes that are compiled once.

    Attributes:
        prior: where the generator's people are; None without an encoder.
    """

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
        self._images = ImagePass(self._generator, 1)
        self._networks = networks
        self.prior: inversion.Prior | None = None
        if encoder := networks.get("encoder"):
            self.prior = inversion.make_prior(self._generator)
            dropout = config.training.compat and encoder.kind == "goae"
            self._encode = inversion.make_encode(
                encoder, self._generator, config.training.seed if dropout else None
            )
            self._refine = inversion.make_refine(
                self._generator,
                networks["lpips"],
                networks["identity"],
                self.prior,
                config.source.refine,
                self._console,
            )

    def __call__(
        self, person: Person, on_codes: Callable[[Found], None] = _ignore
    ) -> Found:
        """Inverts a person's photos, or maps the person's seed to a code.

        Args:
            person: the person.
            on_codes: called when the codes are known, but their targets are not yet,
                which take longer with the method "erase". What it raises is passed on.

        Raises:
            InputError: no photo can be used, or the code has no target.
            UnlearningError: refinement never reached a finite error, or a code is not
                finite.
        """
        given = self._of_photos(person) if person.photos else self._of_seed(person)
        found, mean, groups, shown, starts = given
        if np.allclose(mean, self._generator.mapping.w_avg[...], atol=1e-6):
            raise InputError(
                "the person's code equals the mean code, so it has no direction to move"
                " in; choose another config.source.seed, or config.source.psi above 0"
            )
        on_codes(found)
        w_u = found.codes.w_u
        targets, changes = self._moves(w_u, mean, groups, shown, starts)
        codes = found.codes._replace(w_target=targets)
        return found._replace(codes=codes, changes=changes)

    def _of_photos(self, person: Person) -> _Given:
        photos, skipped = self._read(person.photos)
        tests, further = self.read(person.tests)
        shown, w_u = photos.images, self._invert(photos.images, "photo")
        mean = w_u.mean(axis=0, keepdims=True)
        groups = np.zeros(len(w_u), int)
        if len(w_u) == 1:
            copies = variants(shown, self._config.source.variants)
            w_u = np.concatenate([w_u, self._invert(copies, "copy", w_u)])
            groups = np.append(groups, _groups_of_copies(len(copies)))
            shown = np.concatenate([shown, copies])
        starts = w_u
        if self._config.training.erase and self._config.source.refine.steps:
            # Another photo's code has more in common with the codes before refinement.
            encoded = self.encode(shown)
            w_u = np.concatenate([w_u, encoded])
            groups = np.append(groups, np.full(len(encoded), groups.max() + 1))
        test_codes = _finite(self._invert(tests.images, "test photo"))
        codes = Codes(_finite(w_u), w_u, test_codes)
        found = Found(codes, skipped + further, photos, tests)
        return _Given(found, mean, groups, shown, starts)

    def _of_seed(self, person: Person) -> _Given:
        assert person.seed is not None  # a person has photos or a seed
        generator, training = self._generator, self._config.training
        w_u = mean = np.asarray(self._mapping(z_of_seed(person.seed, generator.z_dim)))
        w_avg = np.asarray(generator.mapping.w_avg[...])
        groups, starts = np.zeros(1, int), np.broadcast_to(w_avg, w_u.shape)
        shown = self._images(generator, w_u)
        at_mean = np.allclose(w_u, w_avg, atol=1e-6)
        if self.prior and training.erase and not at_mean:
            # An attacker who has a picture of a sampled person finds the encoder's
            # codes of the picture and of its altered copies.
            copies = variants(shown, self._config.source.variants)
            shown = np.concatenate([shown, copies])
            starts = self.encode(shown)
            w_u = np.concatenate([w_u, starts])
            groups = np.concatenate([groups, [1], 1 + _groups_of_copies(len(copies))])
        nothing, _ = self.read(())
        codes = Codes(_finite(w_u), w_u, w_u[:0])
        found = Found(codes, [], nothing, nothing)
        return _Given(found, mean, groups, shown, starts)

    def encode(self, photos: np.ndarray) -> np.ndarray:
        """Returns the encoder's codes `[n, L, D]` of photos `[n, H, W, 3]`, unrefined.

        Only if there is an encoder, and so a `prior`.
        """
        parts = np.split(photos, len(photos))
        return np.concatenate([np.asarray(self._encode(photo)) for photo in parts])

    def _moves(
        self,
        w_u: np.ndarray,
        mean: np.ndarray,
        groups: np.ndarray,
        shown: np.ndarray,
        starts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns targets `[P, L, D]`, and the changes of `Found`, by the method.

        Args:
            w_u: codes to forget `[P, L, D]`.
            mean: the mean code of the person's photos `[1, L, D]`.
            groups: each code's group `[P]`; each group's mean is replaced.
            shown: images of the person `[n, H, W, 3]`, to search for.
            starts: where the search for each of them starts, `[n, L, D]`.
        """
        config, training = self._config, self._config.training
        if training.erase:
            by_group = [w_u[groups == i] for i in range(groups.max() + 1)]
            changes = self._eraser(by_group, shown, starts)
            return self._eraser.moved(w_u, changes), changes
        of = target.TARGETS[config.target.name]
        w_avg = self._generator.mapping.w_avg[...]
        made = of(jnp.asarray(mean), w_avg, config.target.distance)
        return np.array(jnp.broadcast_to(made, w_u.shape)), None

    @functools.cached_property
    def _eraser(self) -> Eraser:
        settings = self._config.training.erase
        assert settings
        search = Search(
            self._generator,
            self._networks["lpips"],
            self._networks["identity"],
            self.prior or inversion.make_prior(self._generator),
            SEARCH_RATE,
            SEARCHED,
        )
        return Eraser(
            self._generator,
            search,
            settings,
            self.random(CROWD_SEED, CROWD),
            self.random(CANDIDATE_SEED, CANDIDATES),
            self._identities,
            self._console,
        )

    def _identities(self, w: np.ndarray) -> np.ndarray:
        """Returns the identity embeddings `[N, E]` of codes' images."""
        images = self._images(self._generator, w)
        return batching.in_batches(self._embed, 1, images)

    @functools.cached_property
    def _embed(self) -> Callable:
        return jitted(self._networks["identity"], arcface.embed)

    def random(self, seed: int, count: int) -> np.ndarray:
        """Returns random people's codes `[count, L, D]`, truncated by source.psi."""
        z = jax.random.normal(jax.random.key(seed), (count, self._generator.z_dim))
        return np.asarray(self._mapping(z))

    def photo(self, path: Path) -> Prepared:
        """Returns a photo prepared for the encoder, and a note on its alignment."""
        side, align = self._generator.resolution, self._config.source.align
        return prepare_photo(path, self._detector, side, align)

    def read(self, paths: Sequence[Path]) -> tuple[Photos, list[str]]:
        """Reads and aligns photos.

        Returns:
            The usable photos, and a line for each of the others.
        """
        side = self._generator.resolution
        used, images, skipped = [], [np.zeros((0, side, side, 3), np.float32)], []
        for path in paths:
            try:
                image, note = self.photo(path)
            except InputError as error:
                skipped.append(str(error))
                continue
            if note:
                self._console.say(note)
            used.append(path)
            images.append(image)
        return Photos(tuple(used), np.concatenate(images)), skipped

    def _read(self, paths: Sequence[Path]) -> tuple[Photos, list[str]]:
        """Reads photos as `read` does; raises InputError if none can be used."""
        photos, skipped = self.read(paths)
        if not photos.paths:
            raise InputError("; ".join(skipped))
        return photos, skipped

    def _invert(
        self, photos: np.ndarray, what: str, start: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the codes of photos `[n, H, W, 3]`, one after another.

        Args:
            photos: aligned photos.
            what: a noun that names each of them in the progress bar.
            start: the code `[1, L, D]` from which refinement starts; by default, the
                encoder's.
        """
        L, D = self._generator.num_ws, self._generator.w_dim
        codes = [np.zeros((0, L, D), np.float32)]
        for number in range(len(photos)):
            photo = photos[number : number + 1]
            if not self._config.source.refine.steps:
                w = self._encode(photo)
            else:
                first = self._encode(photo) if start is None else jnp.asarray(start)
                w = self._refine(first, photo, f"{what} {number + 1} of {len(photos)}")
            codes.append(np.asarray(w))
        return np.concatenate(codes)


def _finite(codes: np.ndarray) -> np.ndarray:
    """Returns codes `[P, L, D]`; raises UnlearningError unless they are finite."""
    if not np.isfinite(codes).all():
        rows = np.flatnonzero(~np.isfinite(codes).all(axis=(1, 2)))
        raise UnlearningError(
            f"the person's code is not finite (code {rows[0]} of {len(codes)}), so"
            " nothing was trained; check the networks of the generator and the encoder"
        )
    return codes


def _groups_of_copies(count: int) -> np.ndarray:
    """Returns the groups `[count]` of altered copies: 1 if mirrored, else 0."""
    return (np.arange(count) == MIRRORED).astype(int)
