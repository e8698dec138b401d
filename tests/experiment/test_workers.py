"""Who gets which item, and what becomes of one that fails."""

import threading
import time

import pytest

from guide_jax.experiment.workers import UnusableError, at_work, spread


def test_a_single_worker_takes_all_in_order_in_this_thread():
    threads = []

    def work(item):
        threads.append(threading.current_thread())
        return 10 * item

    assert list(spread([3, 1, 2], [work])) == [(3, 30), (1, 10), (2, 20)]
    assert set(threads) == {threading.main_thread()}


def test_a_worker_that_is_free_takes_the_next_item():
    """The first worker's first item ends only when the second has done all others."""
    rest = threading.Event()
    takers = {}

    def worker(name):
        def work(item):
            takers[item] = name
            if item == "long":
                assert rest.wait(60)
            elif item == "last":
                rest.set()
            return item.upper()

        return work

    items = ["long", "a", "b", "last"]
    outcomes = list(spread(items, [worker("x"), worker("y")]))
    assert outcomes[:3] == [("a", "A"), ("b", "B"), ("last", "LAST")]
    assert outcomes[3] == ("long", "LONG")
    assert {takers[item] for item in ("a", "b", "last")} != {takers["long"]}
    assert len({takers[item] for item in ("a", "b", "last")}) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_its_item_s_outcome_and_the_others_go_on(workers):
    def work(item):
        if item % 2:
            raise ValueError(item)
        return item

    outcomes = dict(spread(range(5), [work] * workers))
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    for item, outcome in outcomes.items():
        assert isinstance(outcome, ValueError) == bool(item % 2)


def test_more_workers_than_items_are_no_harm():
    assert list(spread([1], [lambda x: x] * 4)) == [(1, 1)]
    assert list(spread([], [lambda x: x] * 4)) == []


def broken(item):
    raise UnusableError("cpu:7") from OSError("no memory")


def test_a_worker_that_cannot_work_loses_nobody():
    def work(item):
        return 10 * item

    outcomes = dict(spread(range(6), [broken, work, broken]))
    assert outcomes == {i: 10 * i for i in range(6)}


@pytest.mark.parametrize("workers", [1, 3])
def test_where_no_worker_can_work_each_item_says_why(workers):
    outcomes = dict(spread(range(4), [broken] * workers))
    assert [str(outcomes[i]) for i in range(4)] == ["no memory"] * 4


def test_no_thread_is_left_when_all_is_done():
    assert len(list(spread(range(5), [lambda x: x] * 3))) == 5
    deadline = time.monotonic() + 10
    while at_work():
        assert time.monotonic() < deadline
        time.sleep(0.01)
