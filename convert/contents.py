"""Finds the network in a file's contents, which may hold other things beside it.

People's checkpoints wrap a state dict in dicts ("g_ema", "state_dict") and in prefixes
of tensor names ("module.", "generator."), which are treated alike: both lead from the
file's contents down to a state dict that a family recognises. What is passed by on the
way is left out, and named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from convert.causes import cause_of
from convert.registry import BUNDLES, FAMILIES, PARTS, Part
from convert.rules import Bundle, ConversionError, Family, StateDict, listed

DEPTH = 6  # wrappings around a state dict
# Names of wrappings, in order of preference: moving averages first.
AVERAGES = (
    "g_ema", "G_ema", "generator_ema", "params_ema", "model_ema", "netG_ema", "ema",
    "ema_state_dict",
)  # fmt: skip
PLAIN = ("state_dict", "g", "G", "generator", "netG", "params", "model", "net")


@dataclass(frozen=True)
class Found:
    """A network, several, or part of one in a file's contents.

    Attributes:
        kind: what was recognised.
        state: its state dict, with the entries beside it that `kind.beside` names.
        notes: lines that say what was left out, and what was used instead of what.
    """

    kind: Family | Bundle | Part
    state: StateDict
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    kind: Family | Bundle | Part
    state: StateDict
    beside: Mapping[str, Any]  # what stands beside it and its wrappings
    # Of each wrapping, the titles of its parts and the number of the one that is used.
    passed: tuple[tuple[list[str], int], ...]

    @property
    def rank(self) -> tuple:
        """Sorts candidates; the first is the best."""
        return (
            isinstance(self.kind, Part),
            not any(name in AVERAGES for name in self.path),
            not any(name in PLAIN for name in self.path),
            len(self.path),
        )


def find(data: Any) -> Found:
    """Returns the network in a file's contents.

    Raises:
        ConversionError: there is none, or several that are equally likely to be meant.
    """
    if isinstance(data, list | tuple):
        data = dict(enumerate(data))
    if not isinstance(data, Mapping):
        raise ConversionError("contains no named tensors; give a state dict")
    seen: dict[int, Mapping] = {}
    candidates = sorted(_search(data, (), {}, (), seen), key=lambda x: x.rank)
    if not candidates:
        if cause := next(filter(None, (cause_of(x) for x, _ in seen.values())), None):
            raise ConversionError(cause)
        known = "; ".join(family.title for family in FAMILIES)
        raise ConversionError(f"no supported network found; supported: {known}")
    best = candidates[0]
    equal = [".".join(x.path) for x in candidates if x.rank == best.rank]
    if len(equal) > 1:
        raise ConversionError(
            f"holds several networks ({listed(map(repr, equal), ', ')}); save one of"
            " them alone"
        )
    used = {key: best.beside[key] for key in best.kind.beside if key in best.beside}
    return Found(best.kind, {**best.state, **used}, _notes(best, used))


def _notes(found: _Candidate, used: Mapping) -> tuple[str, ...]:
    notes = []
    names = set(found.path)
    if names & {"g", "G", "netG"} and not names & set(AVERAGES):
        notes.append(
            f"{'.'.join(found.path)!r} is used, because the file has no moving average"
            " ('g_ema') of it, which usually gives better images"
        )
    others = [
        repr(".".join((*found.path[:depth], title)))
        for depth, (titles, used_one) in enumerate(found.passed)
        for i, title in enumerate(titles)
        if i != used_one and title not in used
    ]
    if others:
        notes.append(f"left out: {listed(others, ', ')}")
    return tuple(notes)


def _search(
    data: Mapping, path: tuple, beside: Mapping, passed: tuple, seen: dict
) -> Iterator[_Candidate]:
    known = id(data) in seen
    if not known:  # the object is kept, so that no other one gets its id
        seen[id(data)] = data, _kind_of(data)
    if kind := seen[id(data)][1]:
        yield _Candidate(path, kind, data, beside, passed)
        return
    if known or len(path) == DEPTH:
        return
    beside = {**beside, **data}
    children = list(_children(data))
    inside = {key for child in children for key in child.keys}
    titles = [child.title for child in children]
    titles += [str(key) for key in data if key not in inside]
    for i, child in enumerate(children):
        way = (*path, child.name)
        yield from _search(child.data, way, beside, (*passed, (titles, i)), seen)


class _Child(NamedTuple):
    name: str
    title: str
    data: Mapping
    keys: list  # those of its parent that it consists of


def _children(data: Mapping) -> Iterator[_Child]:
    """Yields the dicts in a dict, and groups of tensors with a common prefix."""
    groups: dict[str, dict] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield _Child(str(key), str(key), value, [key])
        elif isinstance(key, str) and "." in key:
            prefix, _, name = key.partition(".")
            groups.setdefault(prefix, {})[name] = value
    for prefix, group in groups.items():
        keys = [f"{prefix}.{name}" for name in group]
        yield _Child(prefix, f"{prefix}.*", group, keys)


def _kind_of(data: Mapping) -> Family | Bundle | Part | None:
    if not data or not all(isinstance(key, str) for key in data):
        return None
    kinds = (*BUNDLES, *FAMILIES, *PARTS)
    return next((kind for kind in kinds if kind.recognises(data)), None)
