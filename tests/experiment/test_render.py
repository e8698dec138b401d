"""Rendering: seed images, their grid, and walks in latent space."""

import numpy as np
import pytest
import tiny
from PIL import Image

from configs import default
from guide_jax.errors import InputError
from guide_jax.experiment import modes as experiment
from guide_jax.experiment.render import grid, walk
from guide_jax.faces import photos
from guide_jax.models.generator import z_of_seed
from guide_jax.storage.network_file import save_network


def varied():
    """Returns a generator whose people differ; all of the tiny one's are near w_avg."""
    generator = tiny.generator(8)
    for layer in (generator.mapping.fc0, generator.mapping.fc1):
        layer.weight[...] = 100 * layer.weight[...]
    return generator


@pytest.fixture
def config(tmp_path):
    save_network(tmp_path / "generator", varied())
    config = default.get_config()
    config.render.count, config.render.frames, config.render.seed = 3, 2, 5
    return config


def run(config, workdir):
    return experiment.run(config, workdir, "render")["files"]


def test_images_show_the_seeds_and_the_grid_contains_them(config, tmp_path):
    files = run(config, tmp_path)
    folder = tmp_path / "render"
    names = ["images/seed_5.png", "images/seed_6.png", "images/seed_7.png"]
    names += ["grid.png", "walk.webp"]
    assert files == [str(folder / name) for name in names]
    generator = varied()
    with Image.open(folder / "grid.png") as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (16, 16, 3)
    assert (sheet[8:, 8:] == 255).all()  # three images leave one cell empty
    for i in range(3):
        w = tiny.jitted(generator.mapping, lambda m, z: m(z), z_of_seed(5 + i, 8))
        image = tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w)
        wanted = photos.to_uint8(np.asarray(image))[0].astype(int)
        with Image.open(folder / names[i]) as opened:
            found = np.asarray(opened).astype(int)
        assert np.abs(found - wanted).max() <= 1
        top, left = 8 * (i // 2), 8 * (i % 2)
        np.testing.assert_array_equal(sheet[top : top + 8, left : left + 8], found)
    with Image.open(folder / "walk.webp") as opened:
        assert opened.n_frames == 6


def test_only_requested_files_are_written(config, tmp_path):
    config.render.what = ("grid",)
    assert run(config, tmp_path) == [str(tmp_path / "render" / "grid.png")]
    assert [p.name for p in (tmp_path / "render").iterdir()] == ["grid.png"]


def test_another_generator_can_be_named(config, tmp_path):
    config.render.generator = str(tmp_path / "generator")
    config.render.what = ("grid",)
    assert run(config, tmp_path / "new") == [str(tmp_path / "new/render/grid.png")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"render.generator": "none"}, "no such network; check --config.render.gen"),
        (
            {"render.generator": "demo:lpips_alex.npz"},
            "a lpips network is not a generator",
        ),
        ({"render.what": ("film",)}, "choose from images, grid, walk"),
        ({"render.what": ()}, "choose from images, grid, walk"),
        ({"render.count": 0}, "config.render.count is 0; it must be above 0"),
    ],
)
def test_mistakes_give_a_one_line_error(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as caught:
        run(config, tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "render").exists()


def test_a_walk_visits_every_code_and_returns_to_the_first():
    w = np.float32([[[0.0]], [[4.0]], [[2.0]]])
    np.testing.assert_allclose(
        walk(w, 4).ravel(), [0, 1, 2, 3, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5]
    )


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (2, 1)), (5, (3, 2))])
def test_grids_are_nearly_square(count, shape):
    pictures = [Image.new("RGB", (4, 4))] * count
    assert grid(pictures).size == (4 * shape[0], 4 * shape[1])
