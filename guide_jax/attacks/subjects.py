"""Whom attacks are directed at: the person, and people whom no generator has seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guide_jax.attacks.codes import edits
from guide_jax.attacks.copies import rephotographed
from guide_jax.config_types import Attack
from guide_jax.errors import InputError
from guide_jax.faces.datasets import first_images
from guide_jax.faces.folders import in_short, sort_out
from guide_jax.latents import LatentFinder
from guide_jax.models.generator import ImagePass, make_mapping
from guide_jax.models.resample import resize
from guide_jax.storage.locate import locate
from guide_jax.storage.network_file import load_network

GENERATOR = "generator:"
DATASET = "tfds:"


class Probes(NamedTuple):
    """Photos that an attacker holds, and what the result should resemble.

    Attributes:
        images: `[N, H, W, 3]`.
        faces: the same faces unaltered, `[N, H, W, 3]`.
    """

    images: np.ndarray
    faces: np.ndarray


class Strangers(NamedTuple):
    """People whom the original generator has never seen.

    Attributes:
        images: a photo of each person, `[N, H, W, 3]` at the generator's resolution.
        faces: what an attack's result should resemble, the same shape: the photos, or,
            for another generator's people, their images without edits.
        resolution: side in pixels that holds all their detail.
        described: where they come from.
        generated: whether another generator made them.
        files: the photos, or the other generator.
    """

    images: np.ndarray
    faces: np.ndarray
    resolution: int
    described: str
    generated: bool = False
    files: tuple[Path, ...] = ()


def find_strangers(
    settings: Attack,
    latents: LatentFinder,
    resolution: int,
    psi: float,
    directions: Mapping[str, np.ndarray],
) -> Strangers | None:
    """Returns people whom the generator has never seen; None if the config names none.

    Args:
        settings: `strangers` is a folder with a photo of each person, "tfds:NAME:SPLIT"
            or "generator:PATH", another generator. The latter's people have styles of
            several people mixed between their layers, so that W does not hold them even
            if both generators were trained alike.
        latents: reads and aligns photos.
        resolution: side of the attacked generator's images in pixels.
        psi: truncation of another generator's people.
        directions: edits of these people, if they fit their codes.

    Raises:
        InputError: they cannot be read, or there are fewer than two.
    """
    where, count = settings.strangers, settings.strangers_count
    if not where:
        return None
    if where.startswith(GENERATOR):
        found = _generated(
            where.removeprefix(GENERATOR), settings, resolution, psi, directions
        )
    elif where.startswith(DATASET):
        images = first_images(where.removeprefix(DATASET), count, resolution)
        found = Strangers(images, images, resolution, where)
    else:
        found = _photographed(where, count, latents, resolution)
    if len(found.images) < 2:
        raise InputError(
            f"{found.described}: fewer than two usable faces; check"
            " --config.attack.strangers"
        )
    return found


def _photographed(
    folder: str, count: int, latents: LatentFinder, resolution: int
) -> Strangers:
    paths, left_out = sort_out(locate(folder))
    photos, skipped = latents.read(paths[:count])
    described = f"photos in {folder}"
    if left_out := left_out + skipped:
        described += f"; left out: {in_short(left_out)}"
    return Strangers(
        photos.images, photos.images, resolution, described, files=photos.paths
    )


def _mixed(people: jax.Array, count: int, key: jax.Array) -> jax.Array:
    """Draws codes `[count, L, D]` of random people `[M, L, D]`.

    Half of them have other people's styles mixed in, so that W does not hold them.
    """
    key_whole, key_layers, key_which = jax.random.split(key, 3)
    num_layers = people.shape[1]
    whole = jax.random.randint(key_whole, (count, 1), 0, len(people))
    layers = jax.random.randint(key_layers, (count, num_layers), 0, len(people))
    rows = jnp.where(jax.random.bernoulli(key_which, 0.5, (count, 1)), whole, layers)
    return people[rows, jnp.arange(num_layers)[None]]


def _generated(
    path: str,
    settings: Attack,
    resolution: int,
    psi: float,
    directions: Mapping[str, np.ndarray],
) -> Strangers:
    try:
        other: Any = load_network(locate(path))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{error}; check --config.attack.strangers") from error
    keys = jax.random.split(jax.random.key(settings.seed))
    z = jax.random.normal(keys[0], (4 * settings.strangers_count, other.z_dim))
    people = make_mapping(other, psi)(z)
    w = np.asarray(_mixed(people, settings.strangers_count, keys[1]))
    edited = w.copy()
    fitting = {k: x for k, x in directions.items() if x.shape == (other.w_dim,)}
    for i in range(len(w) if fitting else 0):  # a different edit each
        choices = edits(w[i : i + 1], fitting, settings.edit_sizes)
        edited[i] = choices[i % len(choices)]
    show = ImagePass(other, 1)
    images, faces = (
        resize(show(other, x), resolution).clip(-1, 1).astype(np.float32)
        for x in (edited, w)
    )
    sharp = min(resolution, other.resolution)
    about = f"people of {path}"
    return Strangers(images, faces, sharp, about, generated=True, files=(locate(path),))


def photographs(
    shown: np.ndarray, face: np.ndarray, count: int, resolution: int, seed: int
) -> Probes:
    """Returns photographs of images, as an attacker may hold them.

    Args:
        shown: images of one person `[M, H, H, 3]`, taken in turn.
        face: the person's unaltered image `[H, H, 3]`.
        count: number of photographs.
        resolution: side in pixels of the detail that they keep.
        seed: seed of the draw.
    """
    chosen = shown[np.arange(count) % len(shown)]
    copies = [rephotographed(x, seed + i) for i, x in enumerate(chosen)]
    return Probes(
        blurred(np.array(copies, np.float32), resolution),
        np.repeat(face[None], count, axis=0),
    )


def blurred(images: np.ndarray, resolution: int) -> np.ndarray:
    """Removes the detail that images of a lower resolution don't have."""
    side = images.shape[1]
    if resolution >= side or not len(images):
        return images
    return resize(resize(images, resolution), side).astype(np.float32)


def first(probes: Probes, count: int | None) -> Probes:
    """Returns the first photos; all if the count is None."""
    return Probes(probes.images[:count], probes.faces[:count])


def starting_codes(
    encoded: np.ndarray | None, w_avg: np.ndarray, people: np.ndarray, starts: int
) -> np.ndarray:
    """Returns codes at which searches start.

    Args:
        encoded: the encoder's codes of the photos `[N, L, D]`; None without an encoder.
        w_avg: mean code `[D]`.
        people: random people `[M, L, D]`.
        starts: S, searches for each photo: from the encoder's code, from the mean code,
            and from random people, as far as they go.

    Returns:
        `[N, S, L, D]`, or `[1, S, L, D]` without an encoder.
    """
    mean = np.broadcast_to(w_avg, people.shape[1:])
    rest: Sequence[np.ndarray] = [mean, *people]
    if encoded is None:
        return np.stack(rest[:starts])[None]
    return np.stack([np.stack([w, *rest[: starts - 1]]) for w in encoded])
