"""Turning heads and meshes of 3D generators."""

import numpy as np
import pytest
import tiny
import trimesh
from PIL import Image

from configs import eg3d_ffhq
from guide_jax.errors import InputError
from guide_jax.experiment import modes as experiment
from guide_jax.experiment import render_3d
from guide_jax.experiment.render_3d import Shown, densities, save_mesh
from guide_jax.faces.photos import to_uint8
from guide_jax.latents import Codes
from guide_jax.storage.network_file import save_network
from guide_jax.storage.run_folder import PersonFolder, TrainingRecord


@pytest.fixture
def config(tmp_path):
    config = eg3d_ffhq.get_config()
    save_network(tmp_path / "original", tiny.eg3d())
    config.networks.generator.path = str(tmp_path / "original")
    config.render.what, config.render.frames = ("turn", "mesh"), 4
    config.render.mesh_side, config.render.mesh_density = 6, 0.0
    return config


def forgotten(workdir):
    """Writes the result of a run in which nothing but the seed tells the generators."""
    w = np.random.default_rng(0).standard_normal((1, 6, 7)).astype(np.float32)
    record = TrainingRecord({}, "t", "seed 0", "w", "g", [], 0.0)
    codes = Codes(w, w, w[:0])
    PersonFolder(workdir).finish(tiny.eg3d(1), codes, record)
    return w


def test_the_person_turns_before_and_after(config, tmp_path):
    w = forgotten(tmp_path)
    files = experiment.run(config, tmp_path, "render")["files"]
    names = ["turn.gif", "mesh_before.ply", "mesh_after.ply"]
    assert files == [str(tmp_path / "render" / name) for name in names]
    with Image.open(files[0]) as film:
        assert film.n_frames == 4
        film.seek(1)  # the second is furthest to one side
        shown = np.asarray(film.convert("RGB")).astype(float)
    assert shown.shape == (32, 64, 3)
    halves = np.split(shown, 2, axis=1)
    for half, generator in zip(halves, (tiny.eg3d(), tiny.eg3d(1)), strict=True):
        wanted = tiny.jitted(
            generator.synthesis,
            lambda m, w, v: m(w, camera=v)[0],
            w,
            generator.views_at(np.radians([30.0]))["camera"],
        )
        # A GIF has 256 colours.
        assert np.abs(half - to_uint8(np.asarray(wanted))[0]).mean() < 8
    assert not np.array_equal(*halves)


def test_a_generator_without_a_persons_result_shows_the_first_person(config, tmp_path):
    config.render.generator = config.networks.generator.path
    config.render.count = 2
    files = experiment.run(config, tmp_path / "new", "render")["files"]
    assert [x.rsplit("/", 1)[1] for x in files] == ["turn.gif", "mesh.ply"]


def test_a_mesh_lies_where_the_density_has_the_value(monkeypatch, tmp_path):
    def ball(person, side):
        x = np.linspace(-0.5, 0.5, side)  # the cube's side is 1
        off = (0.1, 0.0, -0.05)
        axes = np.meshgrid(*(x - shift for shift in off), indexing="ij")
        return 20 - 100 * np.sqrt(sum(a**2 for a in axes))

    monkeypatch.setattr(render_3d, "densities", ball)
    save_mesh(tmp_path / "mesh.ply", Shown(tiny.eg3d(), None), 48, 10.0)
    mesh = trimesh.load(tmp_path / "mesh.ply")
    from_centre = np.linalg.norm(mesh.vertices - [0.1, 0.0, -0.05], axis=1)
    np.testing.assert_allclose(from_centre, 0.1, atol=0.003)
    assert mesh.is_watertight
    # Positive only if the faces look outwards.
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.1**3, rel=0.03)


def test_densities_are_the_decoders(monkeypatch):
    monkeypatch.setattr(render_3d, "POINTS", 10)
    generator = tiny.eg3d()
    w = np.random.default_rng(0).standard_normal((1, 6, 7)).astype(np.float32)
    grid = densities(Shown(generator, w), 3)

    def look(synthesis, w, points):
        return synthesis.query(synthesis(w)[1][synthesis.feature_name], points)[1]

    points = np.float32([[[-0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]])
    wanted = np.asarray(tiny.jitted(generator.synthesis, look, w, points))
    np.testing.assert_allclose([grid[0, 1, 2], grid[2, 2, 1]], wanted[0], rtol=1e-4)


def test_mistakes_give_a_one_line_error(config, tmp_path):
    config.render.mesh_density = 1e9
    config.render.generator = config.networks.generator.path
    with pytest.raises(InputError, match="the density lies between"):
        experiment.run(config, tmp_path, "render")
    save_network(tmp_path / "flat", tiny.generator(8))
    config.render.generator = str(tmp_path / "flat")
    with pytest.raises(InputError, match="turn and mesh, but a stylegan2"):
        experiment.run(config, tmp_path, "render")
    config.render.generator, config.networks.generator.path = "", str(tmp_path / "no")
    forgotten(tmp_path)
    with pytest.raises(InputError, match=r"/no.: no such|generator: .*/no"):
        experiment.run(config, tmp_path, "render")
    config.render.mesh_side = 1
    with pytest.raises(InputError, match="mesh_side is 1; it must be at least 2"):
        experiment.run(config, tmp_path, "render")
