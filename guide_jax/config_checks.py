"""Checks of the settings: names, numbers and choices.

What can only be checked with devices, files or networks at hand is checked there.
"""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from guide_jax import target
from guide_jax.attacks.verdict import LEVEL_OF, LEVELS
from guide_jax.errors import InputError
from guide_jax.faces.align import ALIGNMENTS
from guide_jax.faces.variants import ALTERATIONS

COMPUTE = ("float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")
ACCUMULATION = ("auto", "always", "never")
METHODS = ("guide", "erase")
SHARED = ("latents", "people")
SCENARIOS = ("random", "in_domain", "out_of_domain")
JUDGE_ALIGNMENTS = ("crop", "mtcnn")
RENDERED = ("images", "grid", "walk", "turn", "mesh")
# Fields that were renamed: old name -> new name.
RENAMED = {
    "frugal": "gradient_accumulation",
    "evaluate.outside": "evaluate.external",
    "evaluate.outside_folder": "evaluate.external_folder",
}


def check(fields: ConfigDict) -> None:
    """Raises InputError if a field is unknown, or no run can have its value.

    Args:
        fields: as `configs/default.py` describes them.
    """
    _check_names(fields)
    _check_numbers(fields)
    check_parallel(fields.parallel)
    _check_choices(fields)


def check_parallel(parallel: ConfigDict) -> None:
    """Raises InputError if no processes can have these settings of config.parallel.

    `main.py` calls this before it connects the processes, which comes before `check`.
    """
    if parallel.coordinator == "auto":
        return  # the cluster knows
    if parallel.processes < 1:
        raise InputError(
            f"config.parallel.processes is {parallel.processes}; it must be above 0"
        )
    if not 0 <= parallel.process < parallel.processes:
        raise InputError(
            f"config.parallel.process is {parallel.process}; it counts from 0 and must"
            f" be below config.parallel.processes ({parallel.processes})"
        )
    by_people = parallel.over == "people"
    if parallel.processes > 1 and not by_people and not parallel.coordinator:
        raise InputError(
            f"config.parallel.processes is {parallel.processes}, and processes that"
            " share steps need config.parallel.coordinator=HOST:PORT of process 0;"
            " config.parallel.over=people needs none"
        )


def unknown_field(message: str, field: str = "") -> str:
    """Returns the error message for a field that does not exist.

    Args:
        message: ml_collections' message, which names the field and a similar one.
        field: the field's dotted name, if known.
    """
    for old, new in RENAMED.items():
        if field == old or f"'{old.rpartition('.')[2]}'" in message:
            return f"config.{old} is now config.{new}"
    text = " ".join(message.split())
    return f"no such setting: {text}; configs/default.py lists all"


def _check_names(fields: ConfigDict) -> None:
    """Raises InputError unless the fields are exactly those of configs/default.py."""
    from configs import default  # configs/ imports nothing from this package

    known, given = set(_names(default.get_config())), set(_names(fields))
    for name in sorted(given - known):
        if name in RENAMED:
            raise InputError(f"config.{name} is now config.{RENAMED[name]}")
        raise InputError(f"no such setting: config.{name}; see configs/default.py")
    if missing := sorted(known - given):
        raise InputError(
            f"config.{missing[0]} is missing; start from configs/default.py"
        )


def _names(fields: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, ConfigDict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_numbers(fields: ConfigDict) -> None:
    for name, value in _numbers(fields):
        if not math.isfinite(value):
            raise InputError(f"config.{name} is {value}; it must be a finite number")
        if value < 0 and not name.endswith("weight"):
            raise InputError(f"config.{name} is {value}; it must not be negative")
        if name.endswith("seed") and value >= 2**63:
            raise InputError(f"config.{name} is {value}; it must be below 2**63")
    evaluate, render, attack = fields.evaluate, fields.render, fields.attack
    for name, value in (
        ("attack.photos", attack.photos),
        ("attack.starts", attack.starts),
        ("attack.batch", attack.batch),
        ("attack.learning_rate", attack.learning_rate),
        ("attack.random_people", attack.random_people),
        ("evaluate.batch", evaluate.batch),
        ("optimizer.learning_rate", fields.optimizer.learning_rate),
        ("erase.shrinkage", fields.erase.shrinkage),
        ("render.count", render.count),
        ("render.frames", render.frames),
        ("render.yaw", render.yaw),
    ):
        if not value:
            raise InputError(f"config.{name} is 0; it must be above 0")
    if render.mesh_side < 2:
        raise InputError(
            f"config.render.mesh_side is {render.mesh_side}; it must be at least 2"
        )
    for name in ("budgets", "relearn_steps"):
        steps = list(attack[name])
        if not steps or steps[0] < 1 or steps != sorted(set(steps)):
            raise InputError(
                f"config.attack.{name} is {attack[name]}; it must be rising numbers of"
                " steps, above 0"
            )
    if evaluate.fid_samples == 1:
        raise InputError(
            "config.evaluate.fid_samples is 1; it must be 0 (no FID) or at least 2"
        )
    if evaluate.others < 2 or evaluate.shown > evaluate.others:
        raise InputError(
            f"config.evaluate.others is {evaluate.others}; it must be at least 2, and"
            f" at least evaluate.shown ({evaluate.shown})"
        )


def _numbers(fields: ConfigDict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the (dotted name, value) of every number in a config."""
    for name, value in fields.items():
        if isinstance(value, ConfigDict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name, value


def _check_choices(fields: ConfigDict) -> None:
    source = fields.source
    for name, value, known in (
        ("method", fields.method, METHODS),
        ("target.name", fields.target.name, sorted(target.TARGETS)),
        ("compute", fields.compute, COMPUTE),
        ("precision", fields.precision, PRECISIONS),
        ("gradient_accumulation", fields.gradient_accumulation, ACCUMULATION),
        ("parallel.over", fields.parallel.over, SHARED),
        ("source.align", source.align, ALIGNMENTS),
        ("source.scenario", source.scenario or SCENARIOS[0], SCENARIOS),
        ("evaluate.align", fields.evaluate.align, JUDGE_ALIGNMENTS),
    ):
        if value not in known:
            raise InputError(
                f"config.{name} is {value!r}; choose one of {', '.join(known)}"
            )
    if fields.method == "erase" and fields.steps:
        raise InputError(
            "config.method='erase' takes no training steps, which would bring the"
            " person back; set --config.steps=0"
        )
    if fields.compat and fields.method != "guide":
        raise InputError(
            "config.compat is for the published method; set --config.method=guide"
        )
    unknown = [what for what in fields.render.what if what not in RENDERED]
    if unknown or not fields.render.what:
        raise InputError(
            f"config.render.what is {fields.render.what}; choose from"
            f" {', '.join(RENDERED)}"
        )
    for name in ("which", "after_training"):
        if unknown := [x for x in fields.attack[name] if x not in LEVEL_OF]:
            raise InputError(
                f"config.attack.{name} names {unknown[0]!r}; choose from"
                f" {', '.join(LEVEL_OF)}"
            )
    if fields.attack.require > len(LEVELS):
        raise InputError(
            f"config.attack.require is {fields.attack.require}; there are"
            f" {len(LEVELS)} levels"
        )
    if source.scenario and (source.scenario == "random") == bool(source.image):
        raise InputError(
            "config.source.image names photos, but config.source.scenario is 'random'"
            if source.image
            else f"config.source.scenario is {source.scenario!r}, which needs photos;"
            " set --config.source.image"
        )
    for seed in source.seeds:
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(
                f"config.source.seeds holds {seed!r}; seeds are whole numbers from 0"
            )
    if source.variants > len(ALTERATIONS):
        raise InputError(
            f"config.source.variants is {source.variants}; there are at most"
            f" {len(ALTERATIONS)}"
        )
    if not source.image and not source.seeds and not source.count:
        raise InputError("config.source.count is 0; at least one person is needed")
