"""What a person's folder holds: its files, written whole, read with suspicion."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from guide_jax.errors import InputError
from guide_jax.reports import report
from guide_jax.storage.network_file import load_network, read_about, save_network
from guide_jax.training.train_state import Keeper

METRICS, RESULTS, PICTURE = "metrics.jsonl", "results.json", "before_after.png"
CODES, EMBEDDINGS = "codes.npz", "embeddings.npz"
GENERATOR, PICTURES, CHECKPOINT = "generator", "pictures", ".checkpoint"


class Codes(NamedTuple):
    """Where in latent space a person is, and whereto.

    Attributes:
        w_u: `[1, L, D]`.
        w_target: `[1, L, D]`.
        tests: codes of other photos of the person `[T, L, D]`.
    """

    w_u: np.ndarray
    w_target: np.ndarray
    tests: np.ndarray


class Stored(NamedTuple):
    """What a training made.

    Attributes:
        generator: the one that forgot.
        codes: the person's.
        about: the training's notes.
    """

    generator: nnx.Module
    codes: Codes
    about: dict


class PersonFolder:
    """The folder of one person's results.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path):
        """Names the folder; nothing is read or written yet."""
        self.path = path

    def prepare(self) -> None:
        """Makes the folder.

        Raises:
            InputError: it can't be made or written to, or the results would have no
                place in it.
        """
        try:
            if (self.path / GENERATOR).exists():
                read_about(self.path / GENERATOR)  # an earlier run's, to be replaced
            for name in (METRICS, RESULTS, PICTURE, CODES):
                if (self.path / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder there")
            self.path.mkdir(parents=True, exist_ok=True)
            self._probe()
        except (OSError, ValueError) as error:
            raise InputError(f"no results can go to {self.path} ({error})") from error

    # While training ------------------------------------------------------------------

    def keeper(self, training: str, every: int) -> Keeper:
        """Returns what keeps the state of a training, by its identity."""
        return Keeper(self.path / CHECKPOINT, training, every)

    def log(self, training: str) -> "StepLog":
        """Returns the log of a training that begins, or goes on, by its identity."""
        return StepLog(self._log_path(training))

    def finish(self, forgetful: nnx.Module, codes: Codes, about: Mapping) -> None:
        """Stores what a training made; from then on `stored` returns it.

        Args:
            forgetful: the generator.
            codes: the person's.
            about: notes; "training" is the training's identity.
        """
        for name in (RESULTS, PICTURE):  # an earlier run's don't belong to it
            (self.path / name).unlink(missing_ok=True)
        training = np.array(about["training"])
        self._save_arrays(CODES, codes._asdict() | {"training": training})
        save_network(self.path / GENERATOR, forgetful, about=about)

    def stored(self, training: str) -> Stored | None:
        """Returns what this training made; None if that is not there, or not whole."""
        try:
            stored = self.load()
        except InputError:
            return None
        return stored if stored.about["training"] == training else None

    def settle(self, training: str) -> None:
        """Ends a training whose generator is stored: its steps are final."""
        part = self._log_path(training)
        if part.exists():
            part.replace(self.path / METRICS)
        # What programs that were killed left behind.
        for left in self.path.glob(f".{METRICS}.*.part"):
            left.unlink()
        for left in self.path.glob(f".{GENERATOR}.*"):
            shutil.rmtree(left)
        self.keeper("", 0).drop()

    def _log_path(self, training: str) -> Path:
        return self.path / f".{METRICS}.{training[:16]}.part"

    def _probe(self) -> None:
        """Raises OSError where nothing can be written."""
        probe = self.path / ".probe"
        probe.touch()
        probe.unlink()

    # Afterwards ----------------------------------------------------------------------

    def load(self) -> Stored:
        """Returns what is stored, by whatever training.

        Raises:
            InputError: they are not all there, or not whole.
        """
        try:
            generator = load_network(self.path / GENERATOR)
            with (self.path / CODES).open("rb") as file, np.load(file) as archive:
                codes = Codes(*(archive[name] for name in Codes._fields))
                training = str(archive["training"])
            about = read_about(self.path / GENERATOR)
            if about["training"] != training:
                raise ValueError(f"{CODES} is of another training than {GENERATOR}")
            return Stored(generator, codes, about)
        # Damaged archives make zipfile and numpy raise anything.
        except Exception as error:
            raise InputError(
                f"{self.path}: no whole result is stored there ({error}); run it"
                " without --mode=evaluate first"
            ) from error

    def results(self) -> dict | None:
        """Returns the person's results; None if they are not there, or not whole."""
        names = PICTURE, EMBEDDINGS
        try:
            results = json.loads((self.path / RESULTS).read_text())
            whole = all((self.path / name).exists() for name in names)
            return results if whole and "ids" in results else None
        except (OSError, ValueError):
            return None

    def invalidate(self) -> None:
        """Takes the results back: what they go with is about to change."""
        (self.path / RESULTS).unlink(missing_ok=True)

    def save_results(self, results: Mapping, embeddings: Mapping) -> None:
        """Writes the results, and embeddings `[E]` by name; the results come last."""
        self._save_arrays(EMBEDDINGS, embeddings)
        report.write_json(self.path / RESULTS, results)

    def _save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        part = self.path / f"{name}.part"
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(self.path / name)


class StepLog:
    """Writes a line of JSON for each step; steps that a resumed run repeats, once.

    Attributes:
        path: of the file.
        seconds: spent so far, in all runs.
    """

    def __init__(self, path: Path):
        """Reads the lines of a run that was broken off, if there are any."""
        self.path, self.seconds = path, 0.0
        self._started = time.monotonic()
        self._earlier = path.read_text().splitlines() if path.exists() else []
        self._file = None

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def __call__(self, step: int, terms: Mapping[str, float]) -> None:
        """Adds a step's line."""
        if self._file is None:
            self._start(step)
        self.seconds = self._offset + time.monotonic() - self._started
        line = {"step": step, **terms, "seconds": round(self.seconds, 2)}
        print(json.dumps(line), file=self._file, flush=True)

    def _start(self, step: int) -> None:
        kept = self._earlier[:step]  # a line for each step, the last one may be cut off
        self._offset = json.loads(kept[-1])["seconds"] if kept else 0.0
        report.write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = self.path.open("a")

    def drop(self) -> None:
        """Removes the file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)
