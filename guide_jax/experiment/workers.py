"""Processes people in parallel: each device works on one person at a time."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class Worker(Protocol):
    """Processes one person at a time."""

    def __call__(self, person: Person, folder: PersonFolder) -> dict[str, Any]:
        """Processes a person; returns the person's entry in results.json."""
        ...

    def done(self, person: Person, folder: PersonFolder) -> dict[str, Any] | None:
        """Returns the entry of a person who needs no more work, otherwise None."""
        ...


class PersonJob(Worker, Protocol):
    """What a mode does for each person; see `unlearn.UnlearnJob`."""

    def close(self) -> None:
        """Lets the other processes end."""
        ...


Item = TypeVar("Item")
MakeJob = Callable[[Config, Networks, DeviceGroup, Console], PersonJob]
_NAME, _END = "guide_jax worker", object()


class DeviceWorker:
    """Processes people on one device."""

    def __init__(
        self,
        position: int,
        device: jax.Device,
        config: Config,
        networks: Networks,
        make_job: MakeJob,
    ):
        """Prepares nothing yet.

        Args:
            position: line of its progress bar on the terminal.
            device: the device.
            config: the run's settings.
            networks: the run's networks, copied to the device for its first person.
            make_job: creates the mode's job.
        """
        self._console, self._device = Console(position, f"[{device}] "), device
        self._config, self._networks = config, networks
        self._make_job = make_job
        self._job: PersonJob | None = None

    def __call__(self, person: Person, folder: PersonFolder) -> dict[str, Any]:
        """Processes a person; raises UnusableError if the device cannot be used."""
        with self._ready() as job:
            return job(person, folder)

    def done(self, person: Person, folder: PersonFolder) -> dict[str, Any] | None:
        """Returns the entry of a person who needs no more work, otherwise None."""
        with self._ready() as job:
            return job.done(person, folder)

    @contextmanager
    def _ready(self) -> Iterator[PersonJob]:
        """Yields the job, which is made once, on the device."""
        device = self._device
        # Both settings are local to a thread.
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            if self._job is None:
                try:
                    self._job = self._make_job(
                        self._config,
                        self._networks.on_device(device),
                        DeviceGroup([device]),
                        self._console,
                    )
                except Exception as error:
                    raise UnusableError(device) from error
            yield self._job


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
