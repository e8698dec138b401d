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
from guide_jax.errors import InputError, UnlearningError
from guide_jax.faces.align import Prepared, prepare_photo
from guide_jax.faces.variants import MIRRORED, variants
from guide_jax.models import arcface
from guide_jax.models.generator import ImagePass, make_mapping, z_of_seed
from guide_jax.models.network import jitted
from guide_jax.people import Person
from guide_jax.storage.locate import Networks
from guide_jax.target import FoldMap

CROWD, CROWD_SEED = 2000, 9001  # number and seed of people for the fold's measures
CANDIDATES, CANDIDATE_SEED = 64, 9002  # number and seed of possible replacements
COMPARED = 4  # the person's codes, at most, for which each of them is tried


class Codes(NamedTuple):
    """A person's latent codes.

    Attributes:
        w_u: the codes to forget, `[P, L, D]`: one for each photo that was used, then
            those of altered copies. For a sampled person, the person's code, then, for
            the fold, the encoder's codes of its image and of altered copies.
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
        fold_map: for the fold, the directions of the person's codes.
    """

    codes: Codes
    skipped: list[str]
    photos: Photos
    tests: Photos
    fold_map: FoldMap | None = None


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
        self._identity = networks.get("identity")
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

    def __call__(self, person: Person) -> Found:
        """Inverts a person's photos, or maps the person's seed to a code.

        Raises:
            InputError: no photo can be used, or the code has no target.
            UnlearningError: refinement never reached a finite error, or a code is not
                finite.
        """
        return self._of_photos(person) if person.photos else self._of_seed(person)

    def _of_photos(self, person: Person) -> Found:
        photos, skipped = self._read(person.photos)
        tests, further = self.read(person.tests)
        w_u = self._invert(photos.images)
        mean = w_u.mean(axis=0, keepdims=True)
        groups = np.zeros(len(w_u), int)
        if len(w_u) == 1:
            copies = variants(photos.images, self._config.source.variants)
            w_u = np.concatenate([w_u, self._invert(copies, w_u)])
            groups = np.append(groups, _groups_of_copies(len(copies)))
        w_target, fold_map = self._targets(w_u, mean, groups)
        codes = Codes(w_u, w_target, _finite(self._invert(tests.images)))
        return Found(codes, skipped + further, photos, tests, fold_map)

    def _of_seed(self, person: Person) -> Found:
        assert person.seed is not None  # a person has photos or a seed
        generator = self._generator
        w_u = mean = np.asarray(self._mapping(z_of_seed(person.seed, generator.z_dim)))
        groups = np.zeros(1, int)
        at_mean = np.allclose(w_u, generator.mapping.w_avg[...], atol=1e-6)
        if self.prior and self._config.training.fold and not at_mean:
            encoded = self._encoded(w_u)
            w_u = np.concatenate([w_u, encoded])
            groups = np.concatenate([groups, [1], 1 + _groups_of_copies(len(w_u) - 2)])
        w_target, fold_map = self._targets(w_u, mean, groups)
        nothing, _ = self.read(())
        return Found(Codes(w_u, w_target, w_u[:0]), [], nothing, nothing, fold_map)

    def _encoded(self, w: np.ndarray) -> np.ndarray:
        """Returns the encoder's codes of a code's image and its altered copies.

        An attacker who has a picture of a sampled person finds these.
        """
        image = self._images(self._generator, w)
        copies = variants(image, self._config.source.variants)
        return self.encode(np.concatenate([image, copies]))

    def encode(self, photos: np.ndarray) -> np.ndarray:
        """Returns the encoder's codes `[n, L, D]` of photos `[n, H, W, 3]`, unrefined.

        Only if there is an encoder, and so a `prior`.
        """
        parts = np.split(photos, len(photos))
        return np.concatenate([np.asarray(self._encode(photo)) for photo in parts])

    def _targets(
        self, w_u: np.ndarray, mean: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, FoldMap | None]:
        """Returns codes' targets `[P, L, D]`, and the fold's map if it is used.

        Args:
            w_u: codes to forget `[P, L, D]`.
            mean: the mean code of the person's photos `[1, L, D]`.
            groups: each code's group `[P]`. Each has a direction of its own in the map,
                but without a discriminant all codes share one.

        Raises:
            InputError: the codes have no target.
        """
        config, w_avg = self._config, self._generator.mapping.w_avg[...]
        fold, fold_map = config.training.fold, None
        w_u = _finite(w_u)
        if fold:
            k = groups if fold.discriminant else np.zeros_like(groups)
            fold_map = target.fold_map(
                [w_u[k == i] for i in range(k.max() + 1)],
                np.asarray(w_avg),
                self._crowd,
                fold,
            )
            if fold.replace:
                fold_map = self._with_replacement(w_u, k, fold_map)
            made = target.fold_person(
                jnp.asarray(w_u), jnp.asarray(k), w_avg, fold_map, fold
            )
        else:
            of = target.TARGETS[config.target.name]
            made = of(jnp.asarray(mean), w_avg, config.target.distance)
        w_target = np.array(jnp.broadcast_to(made, w_u.shape))
        if not np.isfinite(w_target).all():
            raise InputError(
                "the person's code equals the mean code, so it has no direction to move"
                " in; choose another config.source.seed, or config.source.psi above 0"
            )
        return w_target, fold_map

    def _with_replacement(
        self, w_u: np.ndarray, k: np.ndarray, fold_map: FoldMap
    ) -> FoldMap:
        """Returns the map with the candidate that makes the person least similar.

        Candidates are tried where the fold reaches its limit, because the codes of the
        person's other photos are no further from random people than that. The loss's
        identity encoder compares, not a judge.
        """
        fold = self._config.training.fold
        assert fold  # the map belongs to it
        w_u, k = w_u[:COMPARED], k[:COMPARED]
        w_avg = self._generator.mapping.w_avg[...]
        reached = np.full(len(w_u), fold.threshold + fold.limit / max(fold.gain, 1e-3))
        near = target.at_component(
            jnp.asarray(w_u), jnp.asarray(k), jnp.asarray(reached), w_avg, fold_map
        )
        people = self.random(CANDIDATE_SEED, CANDIDATES) - np.asarray(w_avg)
        own, maps, similarities = self._identities(w_u), [], []
        for person in people:
            maps.append(target.with_replacement(fold_map, person))
            codes = np.asarray(target.fold(near, w_avg, maps[-1], fold))
            found = np.sum(self._identities(codes) * own, axis=1)
            similarities.append(np.mean(found))
        return maps[np.argmin(similarities)]

    def _identities(self, w: np.ndarray) -> np.ndarray:
        """Returns the identity embeddings `[N, E]` of codes' images."""
        images = self._images(self._generator, w)
        return batching.in_batches(self._embed, 1, images)

    @functools.cached_property
    def _embed(self) -> Callable:
        return jitted(self._identity, arcface.embed)

    @functools.cached_property
    def _crowd(self) -> np.ndarray:
        """Random people `[M, L, D]`, whose covariance the fold's measures need."""
        return self.random(CROWD_SEED, CROWD)

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
        self, photos: np.ndarray, start: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the codes of photos `[n, H, W, 3]`, one after another.

        Args:
            photos: aligned photos.
            start: the code `[1, L, D]` from which refinement starts; by default, the
                encoder's.
        """
        L, D = self._generator.num_ws, self._generator.w_dim
        codes = [np.zeros((0, L, D), np.float32)]
        for photo in np.split(photos, len(photos)) if len(photos) else ():
            if not self._config.source.refine.steps:
                w = self._encode(photo)
            else:
                first = self._encode(photo) if start is None else jnp.asarray(start)
                w = self._refine(first, photo)
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
