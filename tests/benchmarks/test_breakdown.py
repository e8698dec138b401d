"""Where a step's time goes: each operation belongs somewhere, and all are found."""

import collections

import pytest

from benchmarks import breakdown


@pytest.mark.parametrize(
    ("op_name", "part", "kind"),
    [
        (
            "jit(_fun)/transpose(jvp(student))/lpips/conv_general_dilated",
            "student, lpips, backward",
            "convolutions",
        ),
        (
            "jit(_fun)/jvp(student)/synthesis/add",
            "student, synthesis, forward",
            "the rest",
        ),
        (
            "jit(_fun)/jvp(source)/identity/dot_general",
            "source, identity",
            "convolutions",
        ),
        (
            "jit(_fun)/transpose(jvp(losses))/jvp(losses)/checkpoint/div",
            "differences",
            "the rest",
        ),
        ("jit(_fun)/mul", "latents, Adam, copies", "the rest"),
    ],
)
def test_an_operation_is_put_where_it_belongs(op_name, part, kind):
    assert (breakdown.part_of(op_name), breakdown.kind_of(op_name)) == (part, kind)


def test_the_table_has_the_largest_part_first():
    found = {
        "small": collections.Counter({"the rest": 1.0}),
        "large": collections.Counter({"convolutions": 2.0, "the rest": 1.0}),
    }
    rows = [line.split() for line in breakdown.table(found, steps=2)]
    assert rows[1:] == [
        ["large", "1.500", "75%", "67%"],
        ["small", "0.500", "25%", "0%"],
        ["all", "2.000"],
    ]


@pytest.mark.slow
def test_a_step_s_parts_are_all_seen(capsys):
    breakdown.main(["--tiny", "--resolution=32", "--steps=1"])
    out = capsys.readouterr().out
    for role in ("source", "student"):
        for network in breakdown.NETWORKS:
            assert f"{role}, {network}" in out
    for part in ("backward", "differences", "latents, Adam, copies"):
        assert part in out
