"""`--mode=render` for 3D generators: a turning head, and a mesh of the density."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.errors import InputError
from guide_jax.faces.photos import to_uint8
from guide_jax.models.eg3d.generator import EG3D, Synthesis
from guide_jax.models.generator import Generator, ImagePass, synthesize
from guide_jax.reports.pictures import save_animation
from guide_jax.storage.atomic import writing
from guide_jax.storage.locate import load_generator
from guide_jax.storage.run_folder import CODES, PersonFolder

TURN, MESH = "turn", "mesh"
FRAME_MS = 80  # duration of a frame, in milliseconds
POINTS = 1 << 16  # points whose density is computed at a time


class Shown(NamedTuple):
    """A person to show: a generator, and the person's code `[1, L, D]`."""

    generator: EG3D
    w: np.ndarray


def people_to_show(
    config: Config, workdir: Path, generator: Generator, w: np.ndarray
) -> dict[str, Shown]:
    """Returns whom to show, by label.

    If the folder holds a person's result and no other generator is named, this is the
    forgotten person "before" and "after"; otherwise the first of the rendered people.

    Args:
        config: the run's settings.
        workdir: the run's folder.
        generator: the generator to render.
        w: codes of the rendered people `[N, L, D]`.

    Raises:
        InputError: the generator has no camera, or the original is missing.
    """
    if not isinstance(generator, EG3D):
        what = " and ".join(x for x in (TURN, MESH) if x in config.render.what)
        raise InputError(
            f"config.render.what names {what}, but a {generator.kind} generator has no"
            " camera; leave it out"
        )
    if config.render.generator or not (workdir / CODES).exists():
        return {"": Shown(generator, w[:1])}
    code = PersonFolder(workdir).load().codes.w_u[:1]
    before = load_generator(config)
    assert isinstance(before, EG3D)  # the unlearned one is its copy
    return {"before": Shown(before, code), "after": Shown(generator, code)}


def save_turn(
    path: Path, people: Mapping[str, Shown], frames: int, degrees: float
) -> None:
    """Writes a GIF of people, side by side, who turn their heads to and fro.

    Args:
        path: the file.
        people: label -> person.
        frames: number of frames.
        degrees: how far they turn to each side.
    """
    first = next(iter(people.values()))
    show = ImagePass(first.generator, 1)
    yaw = np.radians(degrees) * np.sin(2 * np.pi * np.arange(frames) / frames)
    views = first.generator.views_at(yaw)
    pages = []
    with Console().bar(TURN, "image", frames * len(people)) as bar:
        for i in range(frames):
            view = {name: x[i : i + 1] for name, x in views.items()}
            row = []
            for person in people.values():
                row.append(to_uint8(show(person.generator, person.w, **view))[0])
                bar.update()
            pages.append(Image.fromarray(np.concatenate(row, axis=1)))
    save_animation(path, pages, FRAME_MS)


def save_mesh(path: Path, person: Shown, side: int, density: float) -> None:
    """Writes the surface where the density has a value, as a PLY file.

    Args:
        path: the file. Coordinates are the generator's: y up, the face looks along z.
        person: the person.
        side: number of samples along each side of the generator's cube.
        density: the value, as the decoder gives it (the published shapes take 10).

    Raises:
        InputError: a package is missing, or the density has this value nowhere.
    """
    try:
        import trimesh  # an extra
        from skimage import measure
    except ImportError as error:
        raise InputError(
            f"a mesh needs a package ({error}); pip install -e '.[mesh]'"
        ) from error
    found = densities(person, side)
    if not found.min() < density < found.max():
        raise InputError(
            f"the density lies between {found.min():.1f} and {found.max():.1f};"
            f" --config.render.mesh_density is {density:g}"
        )
    # A border of low density closes the surface at the cube's sides.
    closed = np.pad(found, 1, constant_values=found.min())
    corners, faces, _, _ = measure.marching_cubes(closed, density)
    box = person.generator.synthesis.rendering.box
    # marching_cubes' faces are seen from the denser side.
    surface = trimesh.Trimesh(_places(corners - 1, side, box), faces[:, ::-1])
    with writing(path) as part:
        surface.export(part, file_type="ply")


def densities(person: Shown, side: int) -> np.ndarray:
    """Returns the density on a grid of the cube, `[side, side, side]` by x, y and z."""
    graph, state = nnx.split(person.generator.synthesis)
    box = person.generator.synthesis.rendering.box

    @jax.jit
    def planes_of(state: nnx.State, w: jax.Array) -> jax.Array:
        return synthesize(nnx.merge(graph, state), w).features

    @jax.jit
    def look(state: nnx.State, planes: jax.Array, points: jax.Array) -> jax.Array:
        synthesis: Synthesis = nnx.merge(graph, state)
        return synthesis.query(planes, points)[1][0]

    planes = planes_of(state, jnp.asarray(person.w))
    index = np.indices((side,) * 3).reshape(3, -1).T
    points = _places(index, side, box).astype(np.float32)
    parts = np.split(points, range(POINTS, len(points), POINTS))
    with Console().bar(MESH, "part", len(parts)) as bar:
        found = []
        for part in parts:
            found.append(np.asarray(look(state, planes, part[None])))
            bar.update()
    return np.concatenate(found).reshape((side,) * 3)


def _places(index: np.ndarray, side: int, box: float) -> np.ndarray:
    """Returns the world's coordinates of a grid's indices, `[..., 3]`."""
    return (index / (side - 1) - 0.5) * box
