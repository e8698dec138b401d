"""Train states on disk, so that an interrupted training run resumes.

`trainer.py` says what a state holds and when it is saved.
"""

from pathlib import Path
from typing import Any

from absl import logging

from guide_jax.storage import orbax
from guide_jax.storage.atomic import backup_of, part_of, remove, replace


class TrainStateStore:
    """Stores the train state of one training run.

    Each state records which run it belongs to. States from other runs, and damaged
    ones, are ignored.

    Attributes:
        every: steps between two checkpoints; 0 for none.
    """

    def __init__(self, path: Path, belongs_to: str, every: int):
        """Sets the path; nothing is written yet.

        Args:
            path: an Orbax folder, created by the first `save`.
            belongs_to: identifies the training run by settings, weights and person.
            every: steps between two checkpoints; 0 for none.
        """
        self._path, self._belongs_to = Path(path).absolute(), belongs_to
        # A program killed between two renames leaves a complete state under one of
        # these names.
        self._part = part_of(self._path)
        self._candidates = self._path, self._part, backup_of(self._part)
        self.every = every

    def save(self, state: Any) -> None:
        """Writes a tree of NumPy arrays, then replaces the previous state with it."""
        orbax.save(self._part, state, {"belongs_to": self._belongs_to})
        replace(self._part, self._path)

    def load(self, fresh: Any) -> Any:
        """Returns the stored state as NumPy arrays, or `fresh` if there is none.

        Args:
            fresh: a tree with the same structure, shapes and dtypes as the state.
        """
        for path in self._candidates:
            if not path.exists():
                continue
            try:
                if orbax.read_about(path) == {"belongs_to": self._belongs_to}:
                    return orbax.load(path, like=fresh)
            except Exception as error:  # Orbax raises any exception if damaged
                logging.warning("%s cannot be read and is ignored: %s", path, error)
        return fresh

    def drop(self) -> None:
        """Removes the stored state."""
        for path in self._candidates:
            remove(path)
