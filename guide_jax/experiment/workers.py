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

from guide_jax.experiment.session import Session
from guide_jax.people import Person
from guide_jax.storage.run_folder import PersonFolder
from guide_jax.training.sharding import Team, place_on


class UnusableError(Exception):
    """A worker that can't work; its `__cause__` says why."""


Item = TypeVar("Item")
_NAME, _END = "guide_jax worker", object()
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

    def work(person: Person, folder: PersonFolder, mode: str) -> dict:
        # Both are a thread's own: what the main thread has set isn't set here.
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            try:
                ready = session()
            except Exception as error:
                raise UnusableError(device) from error
            return ready.person(person, folder, mode)

    return work


def spread(
    items: Sequence[Item], workers: Sequence[Callable[[Item], Any]]
) -> Iterator[tuple[Item, Any]]:
    """Hands items to workers, each of which takes the next one when it is free.

    Args:
        items: in the order in which they begin.
        workers: each works in a thread of its own; a single one in this thread.

    Yields:
        Each item with its result, or with the Exception that it ended in; in the order
        in which they end. After an `UnusableError` a worker takes no more, and
        another one its item; the last one's error is that of all that are left.
    """
    if len(workers) == 1:
        for item in items:
            yield item, _outcome(workers[0], item)
        return
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    ended: queue.SimpleQueue = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    usable = set(range(len(workers)))
    lock = threading.Lock()

    def work(number: int) -> None:
        while True:
            item = waiting.get()
            if item is _END:
                return
            try:
                outcome = workers[number](item)
            except UnusableError as error:
                with lock:
                    if len(usable) > 1:
                        usable.remove(number)
                        waiting.put(item)
                        return
                outcome = error.__cause__
            # Whatever it is, it must not lose the others.
            except Exception as error:
                outcome = error
            ended.put((item, outcome))

    # Daemons: whoever breaks the program off needn't wait for them.
    threads = [
        threading.Thread(target=work, args=(number,), name=_NAME, daemon=True)
        for number in range(len(workers))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            yield ended.get()
    finally:
        for _ in workers:
            waiting.put(_END)
    # A thread that is still ending when the program does takes it down.
    for thread in threads:
        thread.join()


def at_work() -> bool:
    """Says whether a thread of `spread` is there still."""
    return any(thread.name == _NAME for thread in threading.enumerate())


def _outcome(worker: Callable[[Item], Any], item: Item) -> Any:
    try:
        return worker(item)
    except UnusableError as error:
        return error.__cause__
    # Whatever it is, it must not lose the others.
    except Exception as error:
        return error
