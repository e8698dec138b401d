"""What is read from a profiler's trace: idle time and the costliest operations."""

import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import traces
from benchmarks.traces import Operation


def operation(name: str, start: float, seconds: float) -> Operation:
    return Operation(name, name, start, seconds)


def test_idle_time_is_what_no_operation_covers():
    # Two overlap from 0 to 3, and the third runs from 6 to 10.
    found = traces.idle_share(
        [operation("b", 1, 2), operation("c", 6, 4), operation("a", 0, 2)]
    )
    assert found == pytest.approx(0.3)
    inside = [operation("long", 0, 10), operation("short", 2, 1)]
    assert traces.idle_share(inside) == 0
    with pytest.raises(ValueError, match="no operations"):
        traces.idle_share([])


def test_the_costliest_operations_come_first():
    found = traces.costliest(
        [operation("a", 0, 1), operation("b", 1, 3), operation("a", 4, 1.5)], 1
    )
    assert found == [("b", 3, 1)]
    found = traces.costliest([operation("a", 0, 2), operation("a", 4, 2)], 5)
    assert found == [("a", 4, 2)]


def test_a_trace_names_the_program_s_operations(tmp_path):
    x = jnp.ones((200, 200))
    product = jax.jit(lambda x: jnp.sin(x @ x).sum()).lower(x).compile()
    with jax.profiler.trace(str(tmp_path)):
        product(x).block_until_ready()
    trace = traces.read(tmp_path)
    assert trace.on_device == (jax.default_backend() != "cpu")
    known = set(re.findall(r"%?(\S+) = ", product.as_text()))
    assert known & {each.hlo for each in trace.operations}
    assert all(each.seconds >= 0 for each in trace.operations)
