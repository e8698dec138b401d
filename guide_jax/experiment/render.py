"""`--mode=render`: renders images, a grid and a latent walk of a stored generator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import InputError
from guide_jax.experiment.render_3d import (
    MESH,
    TURN,
    people_to_show,
    save_mesh,
    save_turn,
)
from guide_jax.faces.photos import to_uint8
from guide_jax.models.generator import Generator, ImagePass, make_mapping, z_of_seed
from guide_jax.reports.pictures import save_animation
from guide_jax.storage.locate import KINDS, locate
from guide_jax.storage.network_file import load_network
from guide_jax.storage.run_folder import GENERATOR, RENDER

FRAME_MS = 40  # duration of a frame of the walk, in milliseconds


def render(config: Config, workdir: Path) -> dict[str, list[str]]:
    """Renders the people of consecutive seeds.

    Args:
        config: the run's settings, of which `config.render` and `config.source.psi` are
            used.
        workdir: images are written to `workdir/render`. Unless the config names another
            generator, the one stored in this folder is used.

    Returns:
        "files": the paths of `images/seed_N.png`, `grid.png`, `walk.webp` (an
        animation from person to person and back to the first) and, by 3D generators,
        `turn.gif` (the forgotten person turning, before and after) and
        `mesh_before.ply` and `mesh_after.ply`. Without a person's result, the last two
        show the first person, and the mesh is `mesh.ply`.

    Raises:
        InputError: the network does not exist or is not a generator, or not a 3D one
            where this is needed.
    """
    settings = config.render
    generator = _load(settings.generator, workdir)
    seeds = range(settings.seed, settings.seed + settings.count)
    z = np.concatenate([z_of_seed(seed, generator.z_dim) for seed in seeds])
    w = np.asarray(make_mapping(generator, config.source.psi)(z))
    show = ImagePass(generator, 1)
    turned = {}
    if {TURN, MESH} & set(settings.what):  # early, because it may fail
        turned = people_to_show(config, workdir, generator, w)
    folder = workdir / RENDER
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if {"images", "grid"} & set(settings.what):
        images = list(_images(show, generator, w, "images"))
    if "images" in settings.what:
        (folder / "images").mkdir(exist_ok=True)
        for seed, image in zip(seeds, images, strict=True):
            written.append(folder / "images" / f"seed_{seed}.png")
            image.save(written[-1])
    if "grid" in settings.what:
        written.append(folder / "grid.png")
        grid(images).save(written[-1])
    if "walk" in settings.what:
        written.append(folder / "walk.webp")
        frames = list(_images(show, generator, walk(w, settings.frames), "walk"))
        save_animation(written[-1], frames, FRAME_MS)
    if TURN in settings.what:
        written.append(folder / "turn.gif")
        save_turn(written[-1], turned, settings.frames, settings.yaw)
    if MESH in settings.what:
        for label, person in turned.items():
            written.append(folder / f"{'_'.join(x for x in (MESH, label) if x)}.ply")
            save_mesh(written[-1], person, settings.mesh_side, settings.mesh_density)
    Console().say(f"{len(written)} files are in {folder}")
    return {"files": [str(path) for path in written]}


def walk(w: np.ndarray, frames: int) -> np.ndarray:
    """Interpolates linearly from each code to the next and from the last to the first.

    Args:
        w: codes `[N, L, D]`.
        frames: number of codes on each of the N lines, including its start but not its
            end.

    Returns:
        Codes `[N * frames, L, D]`.
    """
    share = (np.arange(frames) / frames).astype(w.dtype)[:, None, None]
    lines = [a + share * (b - a) for a, b in zip(w, np.roll(w, -1, 0), strict=True)]
    return np.concatenate(lines)


def grid(images: list[Image.Image]) -> Image.Image:
    """Arranges images of one size in a nearly square grid."""
    columns = int(np.ceil(np.sqrt(len(images))))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def _load(path: str, workdir: Path) -> Generator:
    place = locate(path) if path else workdir / GENERATOR
    try:
        generator: Any = load_network(place)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{error}; check --config.render.generator") from error
    if generator.kind not in KINDS["generator"]:
        raise InputError(f"{place}: a {generator.kind} network is not a generator")
    return generator


def _images(
    show: ImagePass, generator: Generator, w: np.ndarray, label: str
) -> Iterator[Image.Image]:
    with Console().bar(label, "image", len(w)) as bar:
        for i in range(len(w)):
            yield Image.fromarray(to_uint8(show(generator, w[i : i + 1]))[0])
            bar.update()
