"""How items are spread over workers, and what happens when a worker or item fails."""

import threading
import time

import pytest

from guide_jax.experiment.workers import UnusableError, is_working, spread


def test_a_single_worker_runs_in_order_in_this_thread():
    threads = []

    def work(item):
        threads.append(threading.current_thread())
        return 10 * item

    assert list(spread([3, 1, 2], [work])) == [(3, 30), (1, 10), (2, 20)]
    assert set(threads) == {threading.main_thread()}


def test_a_free_worker_takes_the_next_item():
    """The first item ends only when the other worker has done all the rest."""
    rest_done = threading.Event()
    worker_of = {}

    def worker(name):
        def work(item):
            worker_of[item] = name
            if item == "long":
                assert rest_done.wait(60)
            elif item == "last":
                rest_done.set()
            return item.upper()

        return work

    items = ["long", "a", "b", "last"]
    outcomes = list(spread(items, [worker("x"), worker("y")]))
    assert outcomes[:3] == [("a", "A"), ("b", "B"), ("last", "LAST")]
    assert outcomes[3] == ("long", "LONG")
    assert {worker_of[item] for item in ("a", "b", "last")} != {worker_of["long"]}
    assert len({worker_of[item] for item in ("a", "b", "last")}) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_the_outcome_of_its_item_only(workers):
    def work(item):
        if item % 2:
            raise ValueError(item)
        return item

    outcomes = dict(spread(range(5), [work] * workers))
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    for item, outcome in outcomes.items():
        assert isinstance(outcome, ValueError) == bool(item % 2)


def test_more_workers_than_items_do_no_harm():
    assert list(spread([1], [lambda x: x] * 4)) == [(1, 1)]
    assert list(spread([], [lambda x: x] * 4)) == []


def broken(item):
    raise UnusableError("cpu:7") from OSError("no memory")


def test_an_unusable_worker_loses_no_item():
    def work(item):
        return 10 * item

    outcomes = dict(spread(range(6), [broken, work, broken]))
    assert outcomes == {i: 10 * i for i in range(6)}


@pytest.mark.parametrize("workers", [1, 3])
def test_without_a_usable_worker_each_item_gets_the_error(workers):
    outcomes = dict(spread(range(4), [broken] * workers))
    assert [str(outcomes[i]) for i in range(4)] == ["no memory"] * 4


def test_no_thread_is_left_at_the_end():
    assert len(list(spread(range(5), [lambda x: x] * 3))) == 5
    deadline = time.monotonic() + 10
    while is_working():
        assert time.monotonic() < deadline
        time.sleep(0.01)
