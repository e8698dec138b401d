"""Finds and loads the networks that a config names, or says how to get them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from guide_jax.config_types import Config
from guide_jax.errors import InputError
from guide_jax.inversion import fits
from guide_jax.models.network import network_hash, on_device
from guide_jax.storage import fingerprint
from guide_jax.storage.network_file import load_network

KINDS = {
    "generator": ("stylegan2", "mobilestylegan", "eg3d"),
    "encoder": ("w_encoder", "e4e", "goae"),
    "lpips": ("lpips",),
    "identity": ("ir",),
    "judge": ("ir", "dlib_resnet"),
    "detector": ("mtcnn",),
    "inception": ("inception",),
}
COMPATIBLE = "stylegan2", "eg3d"  # generators for config.compat
BUNDLE = Path(__file__).parents[1] / "demo_weights"
BUNDLED = "demo:"  # prefix of paths in the bundle


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Attributes:
        by_role: role -> network, for the roles that the run needs.
        hashes: role -> `network_hash`, computed once.
        files: role -> the "path" that the config names, and the "sha256" of what is
            there.
    """

    by_role: Mapping[str, nnx.Module]
    hashes: Mapping[str, str]
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __getitem__(self, role: str) -> Any:
        return self.by_role[role]

    def get(self, role: str) -> Any:
        """Returns a role's network, or None."""
        return self.by_role.get(role)

    def on_device(self, device: jax.Device) -> "Networks":
        """Returns copies of the networks on a device."""
        copies = {role: on_device(x, device) for role, x in self.by_role.items()}
        return Networks(copies, self.hashes, self.files)


def load_networks(config: Config) -> Networks:
    """Loads only the networks that a run needs.

    Raises:
        InputError: networks are missing (the message names them all), cannot be read,
            or have a kind that does not fit their role.
    """
    roles = needed(config)
    if "encoder" in roles and not config.networks["encoder"].path:
        raise InputError(
            f"config {config.name!r} has no inversion encoder, so it takes no photo;"
            " choose a person with --config.source.seed"
        )
    roles += [role for role in _optional(config) if role not in roles]
    networks, paths = _load(config, roles)
    for role in _optional(config):
        if role not in needed(config) and not fits(
            networks[role], networks["generator"]
        ):
            del networks[role]  # attacks do without it
    kind = networks["generator"].kind
    if config.training.compat and kind not in COMPATIBLE:
        raise InputError(
            f"config.compat is for {' and '.join(COMPATIBLE)} generators, but"
            f" {paths['generator']} is a {kind}; leave it out"
        )
    _check_lpips(config, networks, paths["lpips"])
    hashes = {role: network_hash(network) for role, network in networks.items()}
    files = {
        role: {
            "path": config.networks[role].path,
            "sha256": fingerprint.of_path(paths[role]),
        }
        for role in networks
    }
    return Networks(networks, hashes, files)


def load_generator(config: Config) -> Any:
    """Loads the original generator alone; raises as `load_networks` does."""
    networks, _ = _load(config, ["generator"])
    return networks["generator"]


def _load(
    config: Config, roles: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Returns roles' networks and paths; raises as `load_networks` does."""
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
        networks: dict[str, Any] = {
            role: load_network(path) for role, path in paths.items()
        }
    except ValueError as error:
        raise InputError(f"{error}; convert or download it again") from error
    for role, network in networks.items():
        if network.kind not in KINDS[role]:
            raise InputError(
                f"{paths[role]} is a {network.kind} network, but config.networks.{role}"
                f" must be one of: {', '.join(KINDS[role])}"
            )
    return networks, paths


def _check_lpips(config: Config, networks: Mapping[str, Any], path: Path) -> None:
    """Raises InputError unless LPIPS can compare the images of a step."""
    resolution = networks["generator"].resolution
    side = config.training.compute.lpips_resolution or resolution
    if resolution % side:
        raise InputError(
            f"config.loss.lpips_resolution is {side}; it must divide the generator's"
            f" {resolution} pixels, or be 0 for full resolution"
        )
    try:
        image = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
        jax.eval_shape(networks["lpips"].features, image)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def needed(config: Config) -> list[str]:
    """Returns the roles for which a run needs a network."""
    photos = bool(config.source.image)
    wanted = {
        "encoder": photos,
        "detector": config.evaluate.align == "mtcnn"
        or (photos and config.source.align != "none"),
        "inception": config.evaluate.fid_samples > 0,
    }
    return [role for role in config.networks if wanted.get(role, True)]


def _optional(config: Config) -> list[str]:
    """Returns further roles, whose networks are loaded if they are there."""
    path = config.networks["encoder"].path
    return ["encoder"] if path and locate(path).exists() else []


def locate(path: str) -> Path:
    """Returns a network's path; "demo:NAME" is in the demo bundle, "~" is home."""
    if path.startswith(BUNDLED):
        return BUNDLE / path.removeprefix(BUNDLED)
    return Path(os.path.expanduser(path))


def _missing(config: Config, roles: Sequence[str]) -> str:
    """Returns a message that names the missing networks and says how to get them."""
    places = [(role, config.networks[role]) for role in roles]
    if not any(network.published for _, network in places):
        return "; ".join(
            f"{network.path!r}: no such network; check --config.networks.{role}.path"
            for role, network in places
        )
    lines = [f"{len(roles)} converted networks of config {config.name!r} are missing:"]
    files: list[str] = []
    for role, network in places:
        names = f", from {' and '.join(network.files)}" if network.files else ""
        lines.append(f"  {role}: {network.path}{names} ({network.published})")
        files += network.files
    if files:
        command = f"python -m convert {' '.join(files)} --out weights"
        lines.append(f"Download them, then run: {command}")
    return "\n".join(lines)
