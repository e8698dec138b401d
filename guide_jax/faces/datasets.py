"""Images of tensorflow-datasets datasets, read without tensorflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from guide_jax.errors import InputError, is_about_a_file
from guide_jax.faces.photos import fit


@contextmanager
def open_dataset(name: str) -> Iterator[Any]:
    """Opens a dataset, as a sequence of dicts with an "image" `[H, W, 3]` uint8 each.

    Args:
        name: the dataset and, optionally, its split, as in "celeb_a_hq/1024:train"; the
            default is the split "train". The dataset must be prepared in a format with
            random access, such as array_record.

    Raises:
        InputError: anything goes wrong while it is open.
    """
    import tensorflow_datasets as tfds  # here, because the import takes a second

    dataset, _, split = name.partition(":")
    try:
        yield tfds.data_source(dataset, split=split or "train")
    # tfds raises any exception for a dataset that is unknown, unprepared or imageless.
    except Exception as error:
        if not is_about_a_file(error):
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"tfds:{name}: cannot be read by tensorflow-datasets; prepare it first with"
            f" `tfds build {dataset} --file_format=array_record` ({reason})"
        ) from error


def first_images(name: str, count: int, size: int) -> np.ndarray:
    """Returns a dataset's first images, cropped to their central squares.

    Args:
        name: as for `open_dataset`.
        count: number of images; fewer if the dataset is smaller.
        size: side of the result in pixels.

    Returns:
        `[N, size, size, 3]`, float32 in [-1, 1].

    Raises:
        InputError: as for `open_dataset`.
    """
    with open_dataset(name) as rows:
        chosen = [rows[i]["image"] for i in range(min(count, len(rows)))]
        return np.concatenate([fit(np.asarray(x), size) for x in chosen])
