"""The generators' protocol, and the passes that all of them share."""

import jax
import numpy as np
import pytest
import tiny

from guide_jax.models.eg3d import cameras
from guide_jax.models.generator import (
    Generator,
    ImagePass,
    make_mapping,
    synthesize,
    z_of_seed,
)


@pytest.mark.parametrize("make", [lambda: tiny.generator(8), tiny.mobile, tiny.eg3d])
def test_all_generators_keep_the_protocol(make):
    generator = make()
    assert isinstance(generator, Generator)
    w = make_mapping(generator)(z_of_seed(0, generator.z_dim))
    assert w.shape == (1, generator.num_ws, generator.w_dim)
    made = tiny.jitted(generator.synthesis, synthesize, w)
    assert made.images.shape == (1, generator.resolution, generator.resolution, 3)
    _, activations = jax.eval_shape(generator.synthesis, w)
    assert made.features.shape == activations[generator.feature_name].shape


def test_images_are_those_of_the_generator_that_is_passed():
    first, second = tiny.generator(8), tiny.generator(8, seed=1)
    show, w = ImagePass(first, 2), np.ones((3, 4, 7), np.float32)
    for generator in (first, second):
        wanted = tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w)
        np.testing.assert_allclose(show(generator, w), wanted, atol=1e-5)


def test_a_view_is_passed_on_row_by_row():
    generator, w = tiny.eg3d(), np.ones((3, 6, 7), np.float32)
    camera = np.asarray(cameras.look_at(np.array([-0.2, 0.0, 0.3])))
    images = ImagePass(generator, 2)(generator, w, camera=camera)
    for row, (code, view) in enumerate(zip(w, camera, strict=True)):
        alone = tiny.jitted(
            generator.synthesis,
            lambda m, w, camera: m(w, camera=camera)[0],
            code[None],
            view[None],
        )
        np.testing.assert_allclose(images[row], alone[0], atol=1e-4)
    assert np.abs(images[0] - images[2]).max() > 0.01


def test_a_seed_stands_for_the_documented_z():
    z = z_of_seed(3, 512)
    assert z.shape == (1, 512)
    assert z.dtype == np.float32
    # The first numbers of numpy.random.default_rng(3), as NumPy promises to keep them.
    np.testing.assert_allclose(z[0, :3], [2.04091912, -2.55566503, 0.41809885])
    np.testing.assert_array_equal(z, z_of_seed(3, 512))
    assert not np.any(z == z_of_seed(4, 512))
