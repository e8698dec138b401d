"""The log of a training run: a line of JSON for each step.

With tensorboardX installed, TensorBoard's event files are written, too.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from guide_jax.storage.atomic import write_text

EVENTS = "tensorboard"  # folder of the event files, beside the log


class StepLog:
    """Writes a line for each step, only once for steps that a resumed run repeats.

    Attributes:
        path: path of the file.
        seconds: training time so far in seconds, including interrupted runs.
    """

    def __init__(self, path: Path):
        """Reads the lines of an interrupted run, if there are any."""
        self.path, self.seconds = path, 0.0
        self._started = time.monotonic()
        self._earlier = path.read_text().splitlines() if path.exists() else []
        self._file: IO[str] | None = None
        self._events: Any = None

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events:
            self._events.close()
        if self._file:
            self._file.close()
        elif not self._earlier:  # the edit alone
            self.seconds = time.monotonic() - self._started

    def __call__(self, step: int, terms: Mapping[str, float]) -> None:
        """Writes a step's line."""
        if self._file is None:
            self._file = self._open(step)
        self.seconds = self._offset + time.monotonic() - self._started
        line = {"step": step, **terms, "seconds": round(self.seconds, 2)}
        print(json.dumps(line), file=self._file, flush=True)
        if self._events:
            for name, value in terms.items():
                self._events.add_scalar(name, value, step)

    def _open(self, step: int) -> IO[str]:
        kept = self._earlier[:step]  # leaves out a last line that may be cut off
        self._offset = json.loads(kept[-1])["seconds"] if kept else 0.0
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._events = _event_writer(self.path.parent / EVENTS, len(kept))
        return self.path.open("a")

    def drop(self) -> None:
        """Removes the file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)


def _event_writer(folder: Path, step: int) -> Any:
    """Returns a writer of event files from a step on; None without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # an extra
    except ImportError:
        return None
    if not step:  # an earlier training's
        shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder), purge_step=step)
