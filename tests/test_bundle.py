"""The embedded demo weights: whole, small, and good for what they are there for."""

import functools

import numpy as np
import pytest

from guide_jax import data
from guide_jax.checkpoint import flat_leaves, load_network
from guide_jax.evaluate import Evaluator
from guide_jax.inversion import invert
from guide_jax.losses import Judges
from guide_jax.models import arcface
from guide_jax.networks import BUNDLE

FILES = (
    "generator",
    "encoder",
    "lpips_alex",
    "identity_dlib",
    "identity_facenet",
)
PSI = 0.7  # the demo's
PEOPLE = range(4000, 4010)  # none of them was trained with


@functools.cache
def network(name):
    return load_network(BUNDLE / f"{name}.npz")


@functools.cache
def people():
    """Returns an evaluator, ten people's codes and how the generator shows them."""
    generator = network("generator")
    judges = Judges(network("lpips_alex"), network("identity_facenet"))
    evaluator = Evaluator(generator, judges)
    z = np.concatenate([data.z_of_seed(seed, generator.z_dim) for seed in PEOPLE])
    w = generator.mapping(z, psi=PSI)
    return evaluator, w, evaluator.look(generator, w)


def test_the_bundle_is_under_32_megabytes_and_described():
    files = list(BUNDLE.glob("*.npz"))
    assert {file.stem for file in files} == set(FILES)
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 32e6
    described = (BUNDLE / "README.md").read_text()
    for file in files:
        assert file.name in described
    assert "research use only" in described


@pytest.mark.parametrize("name", FILES)
def test_every_network_loads(name):
    leaves = flat_leaves(network(name)).values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_faces_are_pictures_of_different_people():
    _, _, looks = people()
    assert looks.images.shape == (10, 128, 128, 3)
    assert 0.2 < looks.images.std() < 1
    similarity = looks.embeddings @ looks.embeddings.T
    strangers = similarity[np.triu_indices(10, 1)]
    assert strangers.mean() < 0.4


def test_a_person_seen_a_little_differently_is_the_same_person():
    evaluator, w, looks = people()
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((10, 1, w.shape[2])).astype(np.float32)
    again = evaluator.look(network("generator"), w + 0.03 * noise)
    own = np.sum(looks.embeddings * again.embeddings, axis=1)
    strangers = (looks.embeddings @ looks.embeddings.T)[np.triu_indices(10, 1)]
    assert own.min() > np.quantile(strangers, 0.95)


def test_the_two_identity_encoders_are_not_the_same_network():
    _, _, looks = people()
    other = np.asarray(arcface.embed(network("identity_dlib"), looks.images))
    rows = np.triu_indices(10, 1)
    a = (looks.embeddings @ looks.embeddings.T)[rows]
    b = (other @ other.T)[rows]
    assert np.abs(a - b).mean() > 0.05


def test_inversion_finds_the_person_again():
    evaluator, _, looks = people()
    generator, encoder = network("generator"), network("encoder")
    w = invert(encoder, generator, looks.images)
    again = evaluator.look(generator, w)
    own = np.sum(looks.embeddings * again.embeddings, axis=1)
    strangers = (looks.embeddings @ looks.embeddings.T)[np.triu_indices(10, 1)]
    assert own.mean() > strangers.mean() + 0.2
