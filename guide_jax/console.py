"""Progress bars, which may stand on lines of their own below one another."""

from tqdm import tqdm


def bar(
    label: str, unit: str, total: int | None, line: int | None, initial: int = 0
) -> tqdm:
    """Returns a progress bar with an estimate of the time that is left.

    Args:
        label: what is being done.
        unit: what is counted.
        total: how many there are.
        line: of the terminal, where others have some; the bar is gone when it ends.
        initial: how many of them are done already.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        position=line,
        leave=line is None,
    )
