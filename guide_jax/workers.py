"""People side by side: each device does the whole work of one, and then of the next."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from guide_jax.parallel import Team, place_on
from guide_jax.people import Person
from guide_jax.person_folder import PersonFolder
from guide_jax.session import Session

Item = TypeVar("Item")
# (person, folder, mode) -> results
Worker = Callable[[Person, PersonFolder, str], dict]


def worker_on(
    line: int, device: jax.Device, config: ConfigDict, networks: dict[str, nnx.Module]
) -> Worker:
    """Returns what does a person's work on a device, and on that alone.

    Args:
        line: of the terminal, for the progress bars.
        device: where.
        config: the run's.
        networks: of the run; the device gets a copy when its first person begins.
    """

    def say(text: str) -> None:
        tqdm.write(f"[{device}] {text}")

    @functools.cache
    def session() -> Session:
        mine = {role: place_on(device, network) for role, network in networks.items()}
        return Session(config, mine, team=Team([device]), line=line, say=say)

    def person(*args) -> dict:
        # Both are a thread's own: what the main thread has set isn't set here.
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            return session().person(*args)

    return person


def spread(
    items: Sequence[Item], workers: Sequence[Callable[[Item], Any]]
) -> Iterator[tuple[Item, Any]]:
    """Hands items to workers, each of which takes the next one when it is free.

    Args:
        items: in the order in which they begin.
        workers: each works in a thread of its own; a single one in this thread.

    Yields:
        Each item with its result, or with the Exception that it ended in; in the order
        in which they end.
    """
    if len(workers) == 1:
        for item in items:
            yield item, _outcome(workers[0], item)
        return
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    ended: queue.SimpleQueue = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def work(worker: Callable[[Item], Any]) -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            ended.put((item, _outcome(worker, item)))

    for worker in workers:
        # Daemons: a program that is broken off needn't wait for them.
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    for _ in items:
        yield ended.get()


def _outcome(worker: Callable[[Item], Any], item: Item) -> Any:
    try:
        return worker(item)
    # Whatever it is, it must not lose the others.
    except Exception as error:
        return error
