"""Train states on disk, so that an interrupted training run resumes.

`trainer.py` says what a state holds and when it is saved.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from guide_jax.errors import is_about_a_file
from guide_jax.storage import orbax
from guide_jax.storage.atomic import backup_of, part_of, remove, replace


class TrainStateStore:
    """Stores the train state of one training run.

    Each state records which run it belongs to. States from other runs, and damaged
    ones, are ignored.

    Attributes:
        every: steps between two checkpoints; 0 for none.
        step: steps done in the state that was saved or loaded last; None without one.
    """

    def __init__(
        self,
        path: Path,
        belongs_to: str,
        every: int,
        origin: Mapping[str, Any] | None = None,
    ):
        """Sets the path; nothing is written yet.

        Args:
            path: an Orbax folder, created by the first `save`.
            belongs_to: identifies the training run by settings, weights and person.
            every: steps between two checkpoints; 0 for none.
            origin: JSON-able; what `found` returns to later programs.
        """
        self.path = Path(path)
        self._path, self._belongs_to = Path(path).absolute(), belongs_to
        self._origin = dict(origin or {})
        self.step: int | None = None
        # A program killed between two renames leaves a complete state under one of
        # these names.
        self._part = part_of(self._path)
        self._candidates = self._path, self._part, backup_of(self._part)
        self.every = every

    def save(self, state: Any) -> None:
        """Writes a tree of NumPy arrays, then replaces the previous state with it.

        Raises:
            OSError: it cannot be written; the previous state is unchanged.
        """
        about = {"belongs_to": self._belongs_to, "origin": self._origin}
        orbax.save(self._part, state, about)
        replace(self._part, self._path)
        self.step = int(state["step"])

    def load(self, fresh: Any) -> Any:
        """Returns the stored state as NumPy arrays, or `fresh` if there is none.

        Args:
            fresh: a tree with the same structure, shapes and dtypes as the state.
        """
        for path, belongs_to, _ in self._found():
            try:
                if belongs_to == self._belongs_to:
                    state = orbax.load(path, like=fresh)
                    self.step = int(state["step"])
                    return state
            except Exception as error:  # Orbax raises any exception if damaged
                _ignore(path, error)
        return fresh

    def found(self) -> tuple[str, dict[str, Any]] | None:
        """Returns whose state is stored, and its `origin`; None if there is none.

        States of 0.1.0 have an empty origin.
        """
        return next(((belongs_to, x) for _, belongs_to, x in self._found()), None)

    def _found(self) -> Iterator[tuple[Path, str, dict[str, Any]]]:
        for path in self._candidates:
            if not path.exists():
                continue
            try:
                about = orbax.read_about(path)
                yield path, about["belongs_to"], about.get("origin", {})
            except Exception as error:
                _ignore(path, error)

    def drop(self) -> None:
        """Removes the stored state."""
        for path in self._candidates:
            remove(path)


def _ignore(path: Path, error: Exception) -> None:
    """Warns of a damaged state; raises an error that is not about the file again."""
    if not is_about_a_file(error):
        raise error
    reason = " ".join(str(error).split())[:200]
    logging.warning("%s cannot be read and is ignored: %s", path, reason)
