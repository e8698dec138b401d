"""The state of a training on disk, so that one broken off goes on from there."""

from pathlib import Path
from typing import Any

from absl import logging

from guide_jax.storage import orbax
from guide_jax.storage.orbax import put, remove, replaced


class Keeper:
    """Keeps the state of a training, so that one broken off goes on from there.

    A state is stored under what it belongs to; one of another training is not gone on
    from, and a damaged one neither.

    Attributes:
        every: steps between two savings; 0 for none.
    """

    def __init__(self, path: Path, belongs_to: str, every: int):
        """Names the place; nothing is written yet.

        Args:
            path: an Orbax folder, made by the first `save`.
            belongs_to: identifies the training: settings, weights, person.
            every: steps between two savings; 0 for none.
        """
        self._path, self._belongs_to = Path(path).absolute(), belongs_to
        self._part = self._path.with_name(f"{self._path.name}.part")
        # A program that was killed while renaming leaves a whole one by another name.
        self._places = self._path, self._part, replaced(self._part)
        self.every = every

    def save(self, state: Any) -> None:
        """Stores a tree of NumPy arrays in the last one's place, once it is whole."""
        about = {"belongs_to": self._belongs_to}
        orbax.save(self._part, state, about)
        put(self._part, self._path)

    def load(self, fresh: Any) -> Any:
        """Returns the stored tree, of NumPy arrays, or `fresh`, which is like it."""
        for path in self._places:
            if not path.exists():
                continue
            try:
                about = orbax.read_about(path)
                if about == {"belongs_to": self._belongs_to}:
                    return orbax.load(path, like=fresh)
            except Exception as error:  # a damaged folder makes Orbax raise anything
                logging.warning("%s can't be read, not gone on from: %s", path, error)
        return fresh

    def drop(self) -> None:
        """Removes what is stored."""
        for path in self._places:
            remove(path)
