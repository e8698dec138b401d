"""The step's breakdown attributes every operation to a part."""

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
            "loss terms",
            "the rest",
        ),
        ("jit(_fun)/mul", "latents, Adam, copies", "the rest"),
    ],
)
def test_operations_are_attributed_to_parts_and_kinds(op_name, part, kind):
    assert (breakdown.part_of(op_name), breakdown.kind_of(op_name)) == (part, kind)


def test_the_table_lists_the_largest_part_first():
    totals = {
        "small": collections.Counter({"the rest": 1.0}),
        "large": collections.Counter({"convolutions": 2.0, "the rest": 1.0}),
    }
    rows = [line.split() for line in breakdown.table(totals, steps=2)]
    assert rows[1:] == [
        ["large", "1.500", "75%", "67%"],
        ["small", "0.500", "25%", "0%"],
        ["total", "2.000"],
    ]


@pytest.mark.full
def test_all_parts_of_a_step_appear(capsys):
    breakdown.main(["--tiny", "--resolution=32", "--steps=1"])
    out = capsys.readouterr().out
    for role in ("source", "student"):
        for network in breakdown.NETWORKS:
            assert f"{role}, {network}" in out
    for part in ("backward", "loss terms", "latents, Adam, copies"):
        assert part in out
