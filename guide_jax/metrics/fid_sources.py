"""FID statistics from published files, image folders, datasets, and a cache."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from guide_jax.errors import InputError, is_about_a_file
from guide_jax.faces.datasets import open_dataset
from guide_jax.faces.folders import in_short, visible_files
from guide_jax.faces.photos import read_image
from guide_jax.metrics.fid_statistics import Accumulator, Features, Statistics
from guide_jax.models.inception import FEATURES, INPUT_SIZE
from guide_jax.models.resample import resize
from guide_jax.storage import fingerprint
from guide_jax.storage.archives import open_npz
from guide_jax.storage.atomic import check_writable, write_arrays

# Clean-fid's names of its statistics say how images were resized. Only its
# legacy_pytorch resizes as pytorch-fid and this project do.
OTHER_RESIZERS = re.compile(r".*_(clean|legacy_tensorflow)(_.*)?\.np[yz]")
ROWS = 4096  # rows of a feature file that are read at a time


def read_statistics(path: str | Path, features: int = FEATURES) -> Statistics:
    """Reads a published file of features or statistics, without executing anything.

    Such a file does not store how its images were resized, on which FID depends. A file
    whose name says that it was otherwise is refused; others get a warning.

    Args:
        path: a `.npy` file with features `[N, F]` (such as `ffhq_real_feat.npy`), or an
            `.npz` file with `mu` `[F]` and `sigma` `[F, F]`, as pytorch-fid writes it.
            The type is recognised by the file's contents, not by its name.
        features: F, the expected number of features.

    Returns:
        The statistics. Their count is 0 if an `.npz` file does not store it.

    Raises:
        InputError: the file does not exist, holds something else, or is named as
            clean-fid names statistics of other resizers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such feature file; check --config.evaluate.fid_real"
        )
    if OTHER_RESIZERS.fullmatch(path.name):
        raise InputError(
            f"{path}: statistics of images that clean-fid resized in another way; FID"
            " would be wrong. Give the photos' folder, or pytorch-fid's statistics"
        )
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start == np.lib.format.MAGIC_PREFIX:
            found = _of_array(path)
        elif start.startswith(b"PK"):
            found = _of_archive(path, "mu", "sigma")
        else:
            raise ValueError("not a NumPy file")
    # zipfile and numpy raise any exception for damaged files.
    except Exception as error:
        if not is_about_a_file(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: holds neither features [N, {features}] (.npy) nor mu and sigma"
            f" (.npz): {reason}"
        ) from error
    if len(found.mean) != features:
        raise InputError(
            f"{path}: holds {len(found.mean)} features, but the network has {features}"
        )
    logging.warning(
        "%s: does not say how the photos were resized; delta FID_real is right only if"
        " pytorch-fid resized them (give the photos' folder to be sure)",
        path,
    )
    return found


def _of_array(path: Path) -> Statistics:
    array = np.lib.format.open_memmap(path, "r")  # refuses pickled objects
    if array.dtype.kind != "f":
        raise ValueError(f"it holds {array.dtype.name}, not floats")
    if array.ndim != 2:
        raise ValueError(f"it has shape {list(array.shape)}, not [N, F]")
    accumulator = Accumulator()
    for start in range(0, len(array), ROWS):
        accumulator.add(array[start : start + ROWS])
    return accumulator.statistics()


def _of_archive(path: Path, mean: str, covariance: str) -> Statistics:
    with open_npz(path) as archive:
        arrays = [np.asarray(archive[name], np.float64) for name in (mean, covariance)]
        count = int(archive["count"]) if "count" in archive else 0
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("its values are not finite")
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        raise ValueError(
            f"its arrays have shapes {list(shapes[0])} and {list(shapes[1])}"
        )
    if not np.allclose(arrays[1], arrays[1].T):
        raise ValueError(f"{covariance} is not symmetric")
    return Statistics(arrays[0], arrays[1], count)


def of_folder(features: Features, folder: str | Path) -> tuple[Statistics, list[str]]:
    """Returns the statistics of the images in a folder and its sub-folders.

    Images are not cropped before they are resized. Hidden files, whose names start with
    a dot, are ignored.

    Args:
        features: computes features of images.
        folder: a folder of images in any format that Pillow reads.

    Returns:
        The statistics, and a line for each file that cannot be read as an image. These
        files are skipped, and a warning lists them.

    Raises:
        InputError: the folder does not exist, or fewer than two files can be read.
    """
    paths = image_files(folder)
    skipped = []

    def inputs() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                yield read_input(path)
            except InputError as error:
                skipped.append(str(error))

    try:
        found = features.of_inputs(inputs(), len(paths), Path(folder).name)
    except ValueError as error:
        if len(paths) - len(skipped) > 1:
            raise  # not caused by a lack of images
        first = f"; {skipped[0]}" if skipped else ""
        raise InputError(
            f"{folder}: {error} ({len(skipped)} of {len(paths)} files cannot be read"
            f"{first})"
        ) from error
    if skipped:
        logging.warning(
            "%s: %d of %d files are left out: %s",
            folder, len(skipped), len(paths), in_short(skipped),
        )  # fmt: skip
    return found, skipped


def of_dataset(features: Features, name: str) -> Statistics:
    """Returns the statistics of a tensorflow-datasets dataset, without tensorflow.

    Args:
        features: computes features of images.
        name: as for `open_dataset`.

    Raises:
        InputError: the dataset is unknown, not prepared, or has no images.
    """
    with open_dataset(name) as rows:
        images = (np.asarray(rows[i]["image"]) for i in range(len(rows)))
        inputs = (resize(x[None] / np.float32(127.5) - 1, INPUT_SIZE) for x in images)
        return features.of_inputs(inputs, len(rows), name)


def image_files(folder: str | Path) -> list[Path]:
    """Returns the sorted files in a folder and its sub-folders, except hidden ones.

    Raises:
        InputError: the folder does not exist or holds no files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    paths = visible_files(folder)
    if not paths:
        raise InputError(f"{folder}: no images in it")
    return paths


def read_input(path: str | Path) -> np.ndarray:
    """Reads an image and resizes it for FID's network.

    NumPy does the resizing, because a jitted resize would be compiled for each size.

    Returns:
        `[1, 299, 299, 3]`, float32 in [-1, 1].

    Raises:
        InputError: as for `photos.read_image`.
    """
    image = read_image(path)[None].astype(np.float32) / 127.5 - 1
    return resize(image, INPUT_SIZE)


def cached(
    folder: str | Path, key: str, compute: Callable[[], Statistics]
) -> Statistics:
    """Returns cached statistics, or computes and caches them.

    Args:
        folder: the cache folder; created if needed.
        key: identifies everything that the result depends on (see `hash_files` and
            `network.network_hash`).
        compute: computes the statistics. It is called if they are not cached, or if the
            cached file is damaged.

    Raises:
        InputError: the folder cannot be created or written to.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = Path(folder) / f"{name}.npz"
    if path.exists():
        try:
            return _of_archive(path, "mean", "covariance")
        # zipfile and numpy raise any exception for damaged files.
        except Exception as error:
            logging.warning("%s: damaged; computing it again (%s)", path, error)
    try:  # before the computation, whose result would otherwise be lost
        check_writable(path.parent)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot write FID statistics there ({error}); check"
            " --config.cache"
        ) from error
    found = compute()
    write_arrays(path, found._asdict(), shared=True)
    return found


def hash_files(paths: Iterable[str | Path]) -> str:
    """Returns a hash of files' names (without folders) and contents, in order."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        total.update(f"{path.name!r} {fingerprint.of_file(path)}\n".encode())
    return total.hexdigest()
