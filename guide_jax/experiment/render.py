"""Pictures of a stored generator: images, a grid, a walk through latent space."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from guide_jax.errors import InputError
from guide_jax.faces import photos
from guide_jax.storage.locate import KINDS, jitted, locate, make_mapping
from guide_jax.storage.network_file import load_network

KNOWN = "images", "grid", "walk"
FOLDER = "render"
FRAME_MS = 40  # of the walk's animation


def render(config: ConfigDict, workdir: Path) -> list[Path]:
    """Makes pictures of the people of seeds, by one generator.

    Args:
        config: `config.render` and `config.source.psi`, as `configs/default.py`
            describes them.
        workdir: the pictures go to `workdir/render`; unless the config names another
            generator, it is the one stored in this folder.

    Returns:
        The files: `images/seed_N.png`, `grid.png`, `walk.webp` (an animation from
        person to person and back to the first).

    Raises:
        InputError: there is no such generator, or nothing to do.
    """
    settings = config.render
    unknown = [what for what in settings.what if what not in KNOWN]
    if unknown or not settings.what:
        raise InputError(
            f"config.render.what is {settings.what}; known are {', '.join(KNOWN)}"
        )
    if settings.count < 1 or settings.frames < 1:
        raise InputError(
            "config.render.count and config.render.frames have to be above 0"
        )
    generator = _generator(settings.generator, workdir)
    seeds = range(settings.seed, settings.seed + settings.count)
    w = _codes(generator, seeds, config.source.psi)
    show = jitted(generator.synthesis, lambda synthesis, w: synthesis(w)[0])
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if {"images", "grid"} & set(settings.what):
        pictures = list(_pictures(show, w, "pictures"))
    if "images" in settings.what:
        (folder / "images").mkdir(exist_ok=True)
        for seed, picture in zip(seeds, pictures, strict=True):
            written.append(folder / "images" / f"seed_{seed}.png")
            picture.save(written[-1])
    if "grid" in settings.what:
        written.append(folder / "grid.png")
        grid(pictures).save(written[-1])
    if "walk" in settings.what:
        written.append(folder / "walk.webp")
        first, *rest = _pictures(show, walk(w, settings.frames), "walk")
        first.save(
            written[-1], save_all=True, append_images=rest, duration=FRAME_MS, loop=0
        )
    print(f"{len(written)} files are in {folder}")
    return written


def walk(w: np.ndarray, frames: int) -> np.ndarray:
    """Returns codes on the straight lines from each to the next and back to the first.

    Args:
        w: `[N, L, D]`.
        frames: codes for each of the N lines, with its beginning and without its end.

    Returns:
        `[N * frames, L, D]`.
    """
    share = (np.arange(frames) / frames).astype(w.dtype)[:, None, None]
    lines = [a + share * (b - a) for a, b in zip(w, np.roll(w, -1, 0), strict=True)]
    return np.concatenate(lines)


def grid(pictures: list[Image.Image]) -> Image.Image:
    """Returns pictures of one size beside and below each other, nearly a square."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def _generator(path: str, workdir: Path) -> nnx.Module:
    place = locate(path) if path else workdir / "generator"
    try:
        generator = load_network(place)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{error}; check --config.render.generator") from error
    if generator.kind not in KINDS["generator"]:
        raise InputError(
            f"{place}: a {generator.kind} network, which makes no pictures"
        )
    return generator


def _codes(generator: nnx.Module, seeds: range, psi: float) -> np.ndarray:
    z = np.concatenate([photos.z_of_seed(seed, generator.z_dim) for seed in seeds])
    return np.asarray(make_mapping(generator, psi)(z))


def _pictures(show, w: np.ndarray, label: str) -> Iterator[Image.Image]:
    for i in tqdm(range(len(w)), desc=label, unit="picture"):
        yield Image.fromarray(photos.to_uint8(np.asarray(show(w[i : i + 1])))[0])
