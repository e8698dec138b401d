"""Opens `.npz` files that others made."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Compressed arrays may be this much larger than the file, and this many bytes more.
EXPANSION, ALLOWANCE = 4, 2**24


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields name -> array, read when asked for; pickled objects are refused.

    Raises:
        ValueError: the arrays would take far more memory than the file.
        Exception: any other exception, if the file is damaged.
    """
    # Opened here, because np.load leaves a damaged file open when given a path.
    with path.open("rb") as file, np.load(file) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile) or archive.zip is None:
            raise ValueError("it is not an .npz file")
        check_expansion(archive.zip.infolist(), path.stat().st_size)
        yield archive


def check_expansion(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raises ValueError if compressed members of a file are far larger than it."""
    # zipfile allocates as much as a member claims to take in the file.
    if any(info.compress_size > size for info in members):
        raise ValueError("truncated or damaged; download it again")
    claimed = sum(info.file_size for info in members if info.compress_type)
    if claimed > EXPANSION * size + ALLOWANCE:
        raise ValueError(
            f"its compressed parts claim {claimed:,} bytes, more than a network's"
            " values can; save it without compression (numpy.savez)"
        )
