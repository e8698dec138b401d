"""Splits rows into batches of one size, so that one compiled program handles all."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def batches(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Splits rows into batches, padding the last batch with copies of its last row.

    Yields:
        A batch `[size, ...]`, and the number of its rows that are not padding.
    """
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        missing = size - len(part)
        yield np.concatenate([part, *[part[-1:]] * missing]), len(part)


def in_batches(program: Callable, size: int, *arrays: np.ndarray) -> np.ndarray:
    """Applies a program to rows in batches of `size`.

    Args:
        program: takes a batch `[size, ...]` of each array; returns `[size, ...]`.
        size: number of rows in a batch.
        arrays: arrays with the same number of rows.
    """
    found = []
    for parts in zip(*(batches(x, size) for x in arrays), strict=True):
        inputs, counts = zip(*parts, strict=True)
        found.append((program(*inputs), counts[0]))
    # Read results only after all batches are dispatched, so that the device never
    # waits.
    return np.concatenate([np.asarray(rows)[:count] for rows, count in found])


def rebatch(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroups arrays of any length into batches of `size`; the last may be shorter."""
    held: list[np.ndarray] = []
    for part in parts:
        held += list(np.asarray(part))
        while len(held) >= size:
            yield np.stack(held[:size])
            held = held[size:]
    if held:
        yield np.stack(held)
