"""Codes near a person's own, where an attacker looks first."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from guide_jax.errors import InputError, is_about_a_file
from guide_jax.storage.archives import open_npz

LINE = 0.3, 0.6, 1.3, 2.0, 3.0  # distances from the mean code; 1 is the person
# Steps towards other people, as fractions of the way, and in random directions, as
# fractions of the person's distance from the mean code.
TOWARDS, RANDOM = (0.1, 0.2, 0.35, 0.5), (0.25, 0.5, 1.0)
NEIGHBOURS = 4  # codes at each of these radii


def edits(
    w: np.ndarray, directions: Mapping[str, np.ndarray], sizes: Sequence[float]
) -> np.ndarray:
    """Returns edited codes, such as the same person smiling.

    Args:
        w: codes `[P, L, D]`.
        directions: name -> direction `[D]` or `[L, D]`.
        sizes: how far to go, in the directions' own lengths; both ways.

    Returns:
        `[N, L, D]`, two for each code, direction and size.
    """
    edited = [
        w + sign * size * direction.astype(w.dtype).reshape(-1, w.shape[2])[None]
        for direction in directions.values()
        for size in sizes
        for sign in (-1, 1)
    ]
    return np.concatenate(edited) if edited else w[:0]


def line(w: np.ndarray, w_avg: np.ndarray) -> np.ndarray:
    """Returns codes on the line through the mean code `[D]` and each code `[P, L, D]`.

    Returns:
        `[N, L, D]`, a code for each of `LINE` and each person's code.
    """
    mean = np.broadcast_to(w_avg, w.shape)
    return np.concatenate([mean + np.float32(k) * (w - mean) for k in LINE])


def neighbourhood(
    w: np.ndarray, w_avg: np.ndarray, people: np.ndarray, seed: int
) -> np.ndarray:
    """Returns codes at growing distances, in random directions and towards others.

    Random directions are differences of two people, because most directions in W hardly
    change an image.

    Args:
        w: the person's codes `[P, L, D]`.
        w_avg: mean code `[D]`.
        people: random people `[M, L, D]`.
        seed: seed of the draw.

    Returns:
        `[N, L, D]`.
    """
    rng = np.random.default_rng(seed)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        """Returns two different people for each code, `[NEIGHBOURS, P, L, D]` each."""
        first = rng.integers(0, len(people), (NEIGHBOURS, len(w)))
        second = first + rng.integers(1, len(people), first.shape)
        return people[first], people[second % len(people)]

    found = []
    length = np.linalg.norm(w - w_avg[None, None], axis=(1, 2), keepdims=True)
    for fraction in TOWARDS:
        found.append(w + np.float32(fraction) * (draw()[0] - w))
    for fraction in RANDOM:
        step = np.subtract(*draw())
        size = np.linalg.norm(step, axis=(2, 3), keepdims=True)
        found.append(w + np.float32(fraction) * length * step / size)
    return np.concatenate(found).reshape(-1, *w.shape[1:])


def read_directions(path: Path, num_ws: int, w_dim: int) -> dict[str, np.ndarray]:
    """Reads directions in latent space.

    Args:
        path: an `.npz` file, name -> `[D]` or `[L, D]`.
        num_ws: L.
        w_dim: D.

    Raises:
        InputError: the file cannot be read, or a direction has another shape.
    """
    try:
        with open_npz(path) as archive:
            found = dict(_finite(archive))
    # zipfile and numpy raise any exception for damaged files.
    except Exception as error:
        if not is_about_a_file(error):
            raise
        raise InputError(
            f"{path}: cannot be read as an .npz file of directions ({error}); check"
            " --config.attack.directions"
        ) from error
    for name, direction in found.items():
        if direction.shape not in ((w_dim,), (num_ws, w_dim)):
            raise InputError(
                f"{path}: the direction {name!r} has shape {list(direction.shape)}, but"
                f" the generator's codes have [{num_ws}, {w_dim}]; check"
                " --config.attack.directions"
            )
    return found


def _finite(archive: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name in archive:
        direction = np.asarray(archive[name], np.float32)
        if not np.isfinite(direction).all():
            raise ValueError(f"{name} is not finite")
        yield name, direction
