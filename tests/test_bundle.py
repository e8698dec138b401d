"""The bundled demo weights: complete, small, and good enough for the demo."""

import functools

import numpy as np
import pytest
import tiny

from guide_jax.inversion import make_encode
from guide_jax.metrics.evaluator import Evaluator
from guide_jax.metrics.judges import cropping_judge
from guide_jax.models import arcface
from guide_jax.models.generator import z_of_seed
from guide_jax.models.network import flat_leaves
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network, read_about

GENERATORS = {"stylegan2_64": 64, "mobilestylegan_128": 128}
FILES = (*GENERATORS, "encoder", "lpips_alex", "identity_dlib", "identity_facenet")
PSI = 0.7  # as in the demo config
PEOPLE = range(4000, 4010)  # seeds that were not trained on

generators = pytest.mark.parametrize("name", GENERATORS)


@functools.cache
def network(name):
    return load_network(BUNDLE / f"{name}.npz")


@functools.cache
def people(name):
    """Returns an evaluator, ten people's codes, and their judged images."""
    generator = network(name)
    judge = cropping_judge(network("identity_facenet"), 10)
    evaluator = Evaluator(generator, network("lpips_alex"), {"facenet": judge})
    z = np.concatenate([z_of_seed(seed, generator.z_dim) for seed in PEOPLE])
    w = tiny.jitted(generator.mapping, lambda mapping, z: mapping(z, psi=PSI), z)
    return evaluator, w, evaluator.judged(generator, w)


def embeddings_of(judged):
    """Returns the judge's embeddings [N, E]."""
    return judged.faces["facenet"].embeddings


def pair_similarities(embeddings):
    """Returns the similarity of every pair of different people."""
    return (embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)]


def test_the_bundle_is_under_32_megabytes_and_documented():
    files = list(BUNDLE.glob("*.npz"))
    assert {file.stem for file in files} == set(FILES)
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 32e6
    readme = (BUNDLE / "README.md").read_text()
    for file in files:
        assert file.name in readme
    assert "research use only" in readme


@pytest.mark.parametrize("name", FILES)
def test_every_network_loads_and_records_its_origin(name):
    leaves = flat_leaves(network(name)).values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert read_about(BUNDLE / f"{name}.npz")


@generators
def test_generated_faces_show_different_people(name):
    _, _, judged = people(name)
    side = GENERATORS[name]
    assert judged.images.shape == (10, side, side, 3)
    assert 0.2 < judged.images.std() < 1
    assert pair_similarities(embeddings_of(judged)).mean() < 0.45


def test_the_student_keeps_its_teachers_identities():
    (_, _, student), (_, _, teacher) = map(people, GENERATORS)
    similarity = embeddings_of(student) @ embeddings_of(teacher).T
    # At least nine of the ten are nearest to themselves.
    assert np.sum(similarity.argmax(axis=1) == np.arange(10)) >= 9
    assert (
        np.diag(similarity).mean()
        > pair_similarities(embeddings_of(teacher)).mean() + 0.3
    )


@generators
def test_a_slightly_changed_code_shows_the_same_person(name):
    evaluator, w, judged = people(name)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((10, 1, w.shape[2])).astype(np.float32)
    again = evaluator.judged(network(name), w + 0.03 * noise)
    own = np.sum(embeddings_of(judged) * embeddings_of(again), axis=1)
    assert own.min() > np.quantile(pair_similarities(embeddings_of(judged)), 0.95)


@generators
def test_the_two_identity_encoders_differ(name):
    _, _, judged = people(name)
    embed = tiny.jitted(network("identity_dlib"), arcface.embed, judged.images)
    difference = pair_similarities(embeddings_of(judged)) - pair_similarities(
        np.asarray(embed)
    )
    assert np.abs(difference).mean() > 0.05


@generators
def test_inversion_recovers_the_person(name):
    evaluator, _, judged = people(name)
    generator, encoder = network(name), network("encoder")
    w = make_encode(encoder, generator)(judged.images)
    again = evaluator.judged(generator, w)
    own = np.sum(embeddings_of(judged) * embeddings_of(again), axis=1)
    assert own.mean() > pair_similarities(embeddings_of(judged)).mean() + 0.2
