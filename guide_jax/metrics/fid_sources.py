"""FID's statistics from files: published ones, folders of images, and a cache."""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from guide_jax.errors import InputError
from guide_jax.faces.photos import read_image, visible_files
from guide_jax.metrics.fid_statistics import Accumulator, Features, Statistics
from guide_jax.models.inception import FEATURES, INPUT_SIZE
from guide_jax.models.resample import resize
from guide_jax.storage import fingerprint

ROWS = 4096  # of a feature file, read at a time
NAMED = 10  # files that a warning names before it only counts


def read_statistics(path: str | Path, features: int = FEATURES) -> Statistics:
    """Reads a published file of features or of their statistics. Nothing is executed.

    Args:
        path: `.npy` with features `[N, F]` (such as `ffhq_real_feat.npy`), or `.npz`
            with `mu` `[F]` and `sigma` `[F, F]`, as pytorch-fid writes it. The file's
            contents decide, not its name.
        features: F.

    Returns:
        The statistics; of an `.npz`, the count is 0.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of features")
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start == np.lib.format.MAGIC_PREFIX:
            found = _of_array(path)
        elif start.startswith(b"PK"):
            found = _of_archive(path, "mu", "sigma")
        else:
            raise ValueError("it is no file of NumPy's")
    # Damaged files make zipfile and numpy raise anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: holds neither features [N, {features}] (.npy) nor mu and sigma"
            f" (.npz): {reason}"
        ) from error
    if len(found.mean) != features:
        raise InputError(
            f"{path}: of {len(found.mean)} features, the network has {features}"
        )
    return found


def _of_array(path: Path) -> Statistics:
    array = np.lib.format.open_memmap(path, "r")  # refuses pickled objects
    if array.dtype.kind != "f":
        raise ValueError(f"it holds {array.dtype.name}")
    if array.ndim != 2:
        raise ValueError(f"it has shape {list(array.shape)}")
    accumulator = Accumulator()
    for start in range(0, len(array), ROWS):
        accumulator.add(array[start : start + ROWS])
    return accumulator.statistics()


def _of_archive(path: Path, mean: str, covariance: str) -> Statistics:
    # Opened here: given a path, numpy leaves a damaged file open.
    with path.open("rb") as file, np.load(file) as archive:
        arrays = [np.asarray(archive[name], np.float64) for name in (mean, covariance)]
        count = int(archive["count"]) if "count" in archive.files else 0
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("not finite")
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        raise ValueError(f"they have shapes {list(shapes[0])} and {list(shapes[1])}")
    if not np.allclose(arrays[1], arrays[1].T):
        raise ValueError(f"{covariance} is not symmetric")
    return Statistics(*arrays, count)


def of_folder(features: Features, folder: str | Path) -> tuple[Statistics, list[str]]:
    """Returns the statistics of a folder's images, with those of folders in it.

    Images are taken whole and at their own size; names that start with a dot are left
    out.

    Args:
        features: what runs the network.
        folder: holds images of any kind that Pillow reads.

    Returns:
        The statistics, and a line for each file that is no image that can be read.
        Those are left out and logged.

    Raises:
        InputError: there is no such folder, or less than two of its files can be read.
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
            raise  # not for want of images
        first = f"; {skipped[0]}" if skipped else ""
        raise InputError(
            f"{folder}: {error} ({len(skipped)} of {len(paths)} files can't be read"
            f"{first})"
        ) from error
    if skipped:
        more = len(skipped) - NAMED
        logging.warning(
            "%s: %d of %d files are left out: %s%s",
            folder, len(skipped), len(paths), "; ".join(skipped[:NAMED]),
            f"; and {more} more" if more > 0 else "",
        )  # fmt: skip
    return found, skipped


def of_dataset(features: Features, name: str) -> Statistics:
    """Returns the statistics of a tensorflow-datasets' images, without tensorflow.

    Args:
        features: what runs the network.
        name: of the dataset and its split, as in "celeb_a_hq/1024:train"; without one,
            all of its images in the split "train". They are taken from its prepared
            files (in a format that can be read in any order, as array_record).

    Raises:
        InputError: there is no such prepared dataset, or it has no images.
    """
    import tensorflow_datasets as tfds  # takes a second, which few runs need to spend

    dataset, _, split = name.partition(":")
    try:
        source = tfds.data_source(dataset, split=split or "train")
        images = (np.asarray(source[i]["image"]) for i in range(len(source)))
        inputs = (resize(x[None] / np.float32(127.5) - 1, INPUT_SIZE) for x in images)
        return features.of_inputs(inputs, len(source), name)
    # It raises anything where a dataset isn't known, prepared, or of images.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"tfds:{name}: can't be read by tensorflow-datasets; prepare it first with"
            f" `tfds build {dataset} --file_format=array_record` ({reason})"
        ) from error


def image_files(folder: str | Path) -> list[Path]:
    """Returns the files in a folder and those in it, sorted, without hidden ones.

    Raises:
        InputError: there is no such folder, or no file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    paths = visible_files(folder)
    if not paths:
        raise InputError(f"{folder}: a folder without images")
    return paths


def read_input(path: str | Path) -> np.ndarray:
    """Reads an image as FID's network takes it.

    By NumPy: a jitted resize would be compiled for every size of image.

    Returns:
        `[1, 299, 299, 3]`, float32 in [-1, 1].

    Raises:
        InputError: as `data.load_photo`.
    """
    image = np.float32(read_image(path))[None] / 127.5 - 1
    return resize(image, INPUT_SIZE)


def cached(
    folder: str | Path, key: str, compute: Callable[[], Statistics]
) -> Statistics:
    """Returns what `compute` gives, from the folder where it was kept before.

    Args:
        folder: the cache; made where it is missing.
        key: says all that the result depends on (see `hash_files` and
            `checkpoint.network_hash`).
        compute: what gives the statistics. It runs where they are not kept, or the file
            that they were kept in is damaged.

    Raises:
        InputError: the folder can't be made or written to.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = Path(folder) / f"{name}.npz"
    if path.exists():
        try:
            return _of_archive(path, "mean", "covariance")
        # Damaged files make zipfile and numpy raise anything.
        except Exception as error:
            logging.warning("%s: damaged, computed again (%s)", path, error)
    try:  # before the work, which would be lost
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{uuid.uuid4().hex[:8]}.part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: nothing can be kept there ({error}); check --config.cache"
        ) from error
    found = compute()
    # Of a name of its own: two runs may write side by side.
    part = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **found._asdict())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return found


def hash_files(paths: Iterable[str | Path]) -> str:
    """Returns a hash of files' names (without folders) and contents, in their order."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        total.update(f"{path.name!r} {fingerprint.of_file(path)}\n".encode())
    return total.hexdigest()
