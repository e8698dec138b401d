"""Processes people in parallel: each device works on one person at a time."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.people import Person
from guide_jax.storage.locate import Networks
from guide_jax.storage.run_folder import PersonFolder
from guide_jax.training.sharding import DeviceGroup


class UnusableError(Exception):
    """A worker cannot be used; the `__cause__` says why."""


class PersonJob(Protocol):
    """What a mode does for each person; see `unlearn.UnlearnJob`."""

    def __call__(self, person: Person, folder: PersonFolder) -> dict[str, Any]:
        """Processes a person; returns the person's entry in results.json."""
        ...

    def close(self) -> None:
        """Lets the other processes end."""
        ...


Item = TypeVar("Item")
MakeJob = Callable[[Config, Networks, DeviceGroup, Console], PersonJob]
Worker = Callable[[Person, PersonFolder], dict[str, Any]]
_NAME, _END = "guide_jax worker", object()


def worker_on(
    position: int,
    device: jax.Device,
    config: Config,
    networks: Networks,
    make_job: MakeJob,
) -> Worker:
    """Returns a worker that processes people on one device.

    Args:
        position: line of its progress bar on the terminal.
        device: the device.
        config: the run's settings.
        networks: the run's networks, copied to the device when its first person starts.
        make_job: creates the mode's job.
    """
    console = Console(position, f"[{device}] ")

    @functools.cache
    def job() -> PersonJob:
        return make_job(
            config, networks.on_device(device), DeviceGroup([device]), console
        )

    def work(person: Person, folder: PersonFolder) -> dict[str, Any]:
        # Both settings are local to a thread.
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            try:
                ready = job()
            except Exception as error:
                raise UnusableError(device) from error
            return ready(person, folder)

    return work


def spread(
    items: Sequence[Item], workers: Sequence[Callable[[Item], Any]]
) -> Iterator[tuple[Item, Any]]:
    """Distributes items over workers; each takes the next item when it is free.

    A worker that raises UnusableError is retired and its item requeued. If none is
    left, every remaining item gets that error's cause.

    Args:
        items: the items, in the order in which they start.
        workers: each runs in its own thread; a single worker runs in this thread.

    Yields:
        Each item with its result, or with the exception that it raised, in the order of
        completion.
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
            except Exception as error:  # any failure must leave the rest running
                outcome = error
            ended.put((item, outcome))

    # Daemon threads, so that an interrupted program does not wait for them.
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
    # The interpreter crashes if it exits while a thread is still ending.
    for thread in threads:
        thread.join()


def is_working() -> bool:
    """Returns whether a thread of `spread` is running."""
    return any(thread.name == _NAME for thread in threading.enumerate())


def _outcome(worker: Callable[[Item], Any], item: Item) -> Any:
    try:
        return worker(item)
    except UnusableError as error:
        return error.__cause__
    except Exception as error:  # any failure must leave the rest running
        return error
