"""Reads the golden parity fixtures; golden/README.md documents how they are made.

Weights and inputs are regenerated from their names and the JSON's seed; only outputs of
the published PyTorch code are stored. `GUIDE_GOLDEN` selects another folder of fixtures
made in the same way.
"""

import functools
import json
import os
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("GUIDE_GOLDEN", Path(__file__).parents[1] / "golden"))


@functools.cache
def load(name: str) -> "Golden":
    """Returns the fixture with this name."""
    return Golden(name)


class Golden:
    """One fixture: `info` is its JSON, `stored` its arrays."""

    def __init__(self, name: str):
        self.info = json.loads((FOLDER / f"{name}.json").read_text())
        self.stored = dict(np.load(FOLDER / f"{name}.npz"))
        self.outputs = {output["name"]: output for output in self.info["outputs"]}

    def weights(self, entries: str = "entries") -> dict[str, np.ndarray]:
        """Returns the state dict with PyTorch names and layouts, in the file's order.

        Use "extra_entries" for the tensors that the file stores outside it.
        """
        return {entry["name"]: self._weight(entry) for entry in self.info[entries]}

    def input(self, name: str) -> np.ndarray:
        """Returns an input in PyTorch layout."""
        spec = next(spec for spec in self.info["inputs"] if spec["name"] == name)
        x = np.float32(spec["mean"]) + np.float32(spec["std"]) * self._draw(
            spec["key"], spec["shape"]
        )
        return np.clip(x, *spec["clip"]) if "clip" in spec else x

    def part(self, name: str, full: np.ndarray) -> np.ndarray:
        """Returns the stored part of a full array (PyTorch layout)."""
        output = self.outputs[name]
        assert list(full.shape) == output["full_shape"], name
        # "stored" is an expression such as "x[:, ::4]", applied to the full array.
        return eval(output["stored"], {"__builtins__": {}, "x": np.asarray(full)})

    def check(self, name: str, full: np.ndarray, atol: float, rtol: float = 1e-4):
        """Compares a full array (PyTorch layout) with the stored part."""
        np.testing.assert_allclose(
            self.part(name, full), self.stored[name], atol=atol, rtol=rtol, err_msg=name
        )

    def _weight(self, entry: dict) -> np.ndarray:
        dtype = np.dtype(entry["dtype"])
        if "fixed" in entry:
            return np.asarray(entry["fixed"], dtype)
        if "fixed_npz" in entry:
            return self.stored[entry["fixed_npz"]].astype(dtype)
        if dtype.kind != "f":
            return np.full(entry["shape"], entry["mean"], dtype)
        n = self._draw(entry["name"], entry["shape"])
        n = np.abs(n) if entry["abs"] else n
        return np.float32(entry["mean"]) + np.float32(entry["std"]) * n

    def _draw(self, key: str, shape: list[int]) -> np.ndarray:
        rng = np.random.default_rng([zlib.crc32(key.encode()), self.info["seed"]])
        return np.asarray(rng.standard_normal(shape)).astype(np.float32)


def nchw(x) -> np.ndarray:
    """Converts NHWC to NCHW, the golden data's layout."""
    return np.asarray(x).transpose(0, 3, 1, 2)


def nhwc(x) -> np.ndarray:
    """Converts NCHW to NHWC, our layout."""
    return np.asarray(x).transpose(0, 2, 3, 1)
