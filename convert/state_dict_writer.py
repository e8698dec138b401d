"""Writes a state dict for PyTorch, as `.npz`, `.safetensors` or (with torch) `.pt`."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from safetensors.numpy import save_file

from convert.rules import StateDict
from guide_jax.storage.network_file import read_about


def write(path: str | Path, state: StateDict) -> None:
    """Writes an exported state dict atomically: either completely or not at all.

    Args:
        path: file to write, with a suffix from `WRITERS`: ".npz", ".safetensors" or
            ".pt". An existing file is replaced, unless it is a guide_jax network.
        state: what `export` returned. With rosinality's names, a `.pt` file gets the
            layout that rosinality's code loads: {"g_ema": state dict, "latent_avg":
            `[D]`}.

    Raises:
        ValueError: the suffix is not supported, `path` is a folder or a guide_jax
            network, or `.pt` is requested and PyTorch is not installed.
    """
    path = Path(path).absolute()
    if path.suffix not in WRITERS:
        supported = ", ".join(WRITERS)
        raise ValueError(f"{path}: unsupported suffix, use one of {supported}")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file name")
    if _is_ours(path):
        raise ValueError(f"{path}: is a guide_jax network; write to another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            WRITERS[path.suffix](file, state)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    try:
        read_about(path)
    except (OSError, ValueError):
        return False
    return True


def _write_npz(file: IO[bytes], state: StateDict) -> None:
    np.savez(file, **state)


def _write_safetensors(file: IO[bytes], state: StateDict) -> None:
    save_file(dict(state), file.name, metadata={"format": "pt"})


def _write_pt(file: IO[bytes], state: StateDict) -> None:
    try:
        import torch
    except ImportError:
        raise ValueError(
            ".pt needs PyTorch, which is not installed; pip install torch, or choose"
            " .npz or .safetensors"
        ) from None
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    if "latent_avg" in tensors:
        w_avg = tensors.pop("latent_avg")
        tensors = {"g_ema": tensors, "latent_avg": w_avg}
    torch.save(tensors, file)


WRITERS: dict[str, Callable[[IO[bytes], StateDict], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".pt": _write_pt,
}
