"""Finds and loads the networks that a config names, or says how to get them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from guide_jax.errors import InputError
from guide_jax.storage.network_file import load_network

KINDS = {
    "generator": ("stylegan2", "mobilestylegan"),
    "encoder": ("w_encoder", "e4e"),
    "lpips": ("lpips",),
    "identity": ("ir",),
    "judge": ("ir",),
    "detector": ("mtcnn",),
    "inception": ("inception",),
}
BUNDLE = Path(__file__).parents[1] / "demo_weights"
BUNDLED = "demo:"  # a path that starts so is in the bundle


def load_networks(config: ConfigDict) -> dict[str, nnx.Module]:
    """Loads the networks that a run needs, and no others.

    Args:
        config: as `configs/default.py` describes it.

    Returns:
        role -> network.

    Raises:
        InputError: some are missing (all are named), can't be read, or are of a kind
            that doesn't fit their role.
    """
    roles = needed(config)
    if "encoder" in roles and not config.networks.encoder.path:
        raise InputError(
            f"config {config.name!r} has no inversion encoder, so it takes no photo;"
            " choose a person with --config.source.seed"
        )
    if unset := [role for role in roles if not config.networks[role].path]:
        raise InputError(
            f"config {config.name!r} names no network for: {', '.join(unset)};"
            " set --config.networks.ROLE.path"
        )
    paths = {role: locate(config.networks[role].path) for role in roles}
    missing = [role for role, path in paths.items() if not path.exists()]
    if missing:
        raise InputError(_missing(config, missing))
    try:
        networks = {role: load_network(path) for role, path in paths.items()}
    except ValueError as error:
        raise InputError(f"{error}; convert or download it again") from error
    for role, network in networks.items():
        if network.kind not in KINDS[role]:
            raise InputError(
                f"{paths[role]} is a {network.kind} network, but config.networks.{role}"
                f" has to be one of: {', '.join(KINDS[role])}"
            )
    side = networks["generator"].resolution
    seen = config.loss.lpips_resolution or side
    if side % seen:
        raise InputError(
            f"config.loss.lpips_resolution is {seen}; it must divide the generator's"
            f" {side} pixels, or be 0 for all of them"
        )
    try:
        image = jax.ShapeDtypeStruct((1, seen, seen, 3), "float32")
        jax.eval_shape(networks["lpips"].features, image)
    except ValueError as error:
        raise InputError(f"{paths['lpips']}: {error}") from error
    return networks


def needed(config: ConfigDict) -> list[str]:
    """Returns the roles for which a run needs a network."""
    wanted = {
        "encoder": bool(config.source.image),
        "detector": config.evaluate.align == "mtcnn"
        or (bool(config.source.image) and config.source.align != "none"),
        "inception": config.evaluate.fid_samples > 0,
    }
    return [role for role in config.networks if wanted.get(role, True)]


def locate(path: str) -> Path:
    """Returns where a network is; "demo:NAME" is in the bundle."""
    if path.startswith(BUNDLED):
        return BUNDLE / path.removeprefix(BUNDLED)
    return Path(path)


def _missing(config: ConfigDict, roles: list[str]) -> str:
    """Says which networks are missing; how to get them, where the config knows."""
    places = [(role, config.networks[role]) for role in roles]
    if not any(network.published for _, network in places):
        return "; ".join(
            f"{network.path!r}: no such network; check --config.networks.{role}.path"
            for role, network in places
        )
    lines = [f"{len(roles)} converted networks of config {config.name!r} are missing:"]
    files = []
    for role, network in places:
        names = f", from {' and '.join(network.files)}" if network.files else ""
        lines.append(f"  {role}: {network.path}{names} ({network.published})")
        files += network.files
    if files:
        command = f"python -m convert {' '.join(files)} --out weights"
        lines.append(f"Download them, then run: {command}")
    return "\n".join(lines)


def make_mapping(generator: nnx.Module, psi: float = 1.0) -> Callable:
    """Returns the jitted pass from z `[N, Z]` to w `[N, L, D]`, truncated by psi."""
    return jitted(generator.mapping, lambda mapping, z: mapping(z, psi=psi))


def jitted(networks: Any, function: Callable) -> Callable:
    """Jits `function(networks, *args)`, the weights as arguments of the program.

    Args:
        networks: a network, or a tuple of them.
        function: pure, of `networks` and arrays.

    Returns:
        The function of the remaining arguments.
    """
    graph, state = nnx.split(networks)
    program = jax.jit(lambda state, *args: function(nnx.merge(graph, state), *args))
    return lambda *args: program(state, *args)
