"""The embedded demo weights: whole, small, and good for what they are there for."""

import functools

import numpy as np
import pytest
import tiny

from guide_jax.faces import photos
from guide_jax.inversion import make_encode
from guide_jax.metrics.evaluator import Evaluator
from guide_jax.metrics.identity import cropping
from guide_jax.models import arcface
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import flat_leaves, load_network, read_about

GENERATORS = {"stylegan2_64": 64, "mobilestylegan_128": 128}
FILES = (*GENERATORS, "encoder", "lpips_alex", "identity_dlib", "identity_facenet")
PSI = 0.7  # the demo's
PEOPLE = range(4000, 4010)  # none of them was trained with

generators = pytest.mark.parametrize("name", GENERATORS)


@functools.cache
def network(name):
    return load_network(BUNDLE / f"{name}.npz")


@functools.cache
def people(name):
    """Returns an evaluator, ten people's codes and how a generator shows them."""
    generator = network(name)
    judge = cropping(network("identity_facenet"), 10)
    evaluator = Evaluator(generator, network("lpips_alex"), {"facenet": judge})
    z = np.concatenate([photos.z_of_seed(seed, generator.z_dim) for seed in PEOPLE])
    w = tiny.jitted(generator.mapping, lambda mapping, z: mapping(z, psi=PSI), z)
    return evaluator, w, evaluator.look(generator, w)


def seen(view):
    """Returns the judge's embeddings."""
    return view.faces["facenet"].embeddings


def strangers(embeddings):
    """Returns the similarity of every two of the people."""
    return (embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)]


def test_the_bundle_is_under_32_megabytes_and_described():
    files = list(BUNDLE.glob("*.npz"))
    assert {file.stem for file in files} == set(FILES)
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 32e6
    described = (BUNDLE / "README.md").read_text()
    for file in files:
        assert file.name in described
    assert "research use only" in described


@pytest.mark.parametrize("name", FILES)
def test_every_network_loads_and_says_where_it_is_from(name):
    leaves = flat_leaves(network(name)).values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert read_about(BUNDLE / f"{name}.npz")


@generators
def test_faces_are_pictures_of_different_people(name):
    _, _, looks = people(name)
    side = GENERATORS[name]
    assert looks.images.shape == (10, side, side, 3)
    assert 0.2 < looks.images.std() < 1
    assert strangers(seen(looks)).mean() < 0.45


def test_the_student_shows_its_teachers_people():
    (_, _, student), (_, _, teacher) = map(people, GENERATORS)
    similarity = seen(student) @ seen(teacher).T
    # Of ten, nine at least are nearest to themselves.
    assert np.sum(similarity.argmax(axis=1) == np.arange(10)) >= 9
    assert np.diag(similarity).mean() > strangers(seen(teacher)).mean() + 0.3


@generators
def test_a_person_seen_a_little_differently_is_the_same_person(name):
    evaluator, w, looks = people(name)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((10, 1, w.shape[2])).astype(np.float32)
    again = evaluator.look(network(name), w + 0.03 * noise)
    own = np.sum(seen(looks) * seen(again), axis=1)
    assert own.min() > np.quantile(strangers(seen(looks)), 0.95)


@generators
def test_the_two_identity_encoders_are_not_the_same_network(name):
    _, _, looks = people(name)
    embed = tiny.jitted(network("identity_dlib"), arcface.embed, looks.images)
    difference = strangers(seen(looks)) - strangers(np.asarray(embed))
    assert np.abs(difference).mean() > 0.05


@generators
def test_inversion_finds_the_person_again(name):
    evaluator, _, looks = people(name)
    generator, encoder = network(name), network("encoder")
    w = make_encode(encoder, generator)(looks.images)
    again = evaluator.look(generator, w)
    own = np.sum(seen(looks) * seen(again), axis=1)
    assert own.mean() > strangers(seen(looks)).mean() + 0.2
