"""Networks that read codes as if these were changed."""

import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.models.edited import edited
from guide_jax.models.generator import ImagePass

GENERATORS = {"stylegan2": tiny.generator, "mobilestylegan": tiny.mobile}


@pytest.fixture(params=GENERATORS)
def generator(request):
    return GENERATORS[request.param]()


def test_each_affine_layer_is_listed_once_with_its_style(generator):
    layers = generator.synthesis.affine_layers()
    parts = [set(name.split(".")) for name in tiny.flat(generator.synthesis)]
    weights = [x for x in parts if "weight" in x and x & {"affine", "up"}]
    assert len(layers) == len(weights)
    assert len({id(layer) for _, layer in layers}) == len(layers)
    assert {style for style, _ in layers} == set(range(generator.num_ws))


def test_the_edited_generator_shows_the_changed_codes_images(generator):
    rng = np.random.default_rng(2)
    L, D = generator.num_ws, generator.w_dim
    w_avg = rng.standard_normal(D).astype(np.float32)
    changes = 0.3 * rng.standard_normal((L, D, D))  # other changes in each style
    codes = rng.standard_normal((3, L, D)).astype(np.float32)
    moved = codes + np.einsum("nld,lde->nle", codes - w_avg, changes)

    images = ImagePass(generator, 3)
    wanted = images(generator, moved.astype(np.float32))
    original = images(generator, codes)
    copy = nnx.clone(generator)
    copy.synthesis = edited(generator.synthesis, changes, w_avg)
    found = images(copy, codes)
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * size)
    assert np.abs(found - original).max() > 0.01 * size
    np.testing.assert_array_equal(images(generator, codes), original)
