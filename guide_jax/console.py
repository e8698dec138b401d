"""Prints lines and progress bars on the terminal."""

import sys
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Console:
    """Prints for a run, or for one of several workers that run in parallel.

    Attributes:
        position: the line of the worker's progress bar. None if only one bar is shown
            at a time; it then stays on the screen when it ends.
        prefix: text printed before each line.
    """

    position: int | None = None
    prefix: str = ""

    def say(self, text: str) -> None:
        """Prints a line, above any progress bars."""
        tqdm.write(f"{self.prefix}{text}")
        sys.stdout.flush()

    def bar(self, label: str, unit: str, total: int | None, initial: int = 0) -> tqdm:
        """Returns a progress bar with an estimate of the time left.

        Args:
            label: what is being done.
            unit: what is being counted.
            total: number of units; None if unknown.
            initial: number of units that are already done.
        """
        return tqdm(
            total=total,
            initial=initial,
            desc=label,
            unit=unit,
            position=self.position,
            leave=self.position is None,
        )


def duration(seconds: float) -> str:
    """Formats a duration, as in "12 s", "5 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    return f"{hours}{minutes % 60 if hours else minutes} min"
