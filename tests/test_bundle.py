"""The bundled demo weights: complete, small, and good enough for the demo."""

import functools

import numpy as np
import pytest
import tiny

from configs import demo, demo_128, mobile_ffhq
from guide_jax.attacks.codes import edits, read_directions
from guide_jax.inversion import make_encode
from guide_jax.metrics.calibration import calibration_of
from guide_jax.metrics.evaluator import Evaluator
from guide_jax.metrics.judges import (
    Faces,
    cropping_judge,
    rescaled,
    similarity,
    strangers,
)
from guide_jax.models import arcface
from guide_jax.models.generator import z_of_seed
from guide_jax.models.network import flat_leaves
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network, read_about

GENERATORS = {"stylegan2_64": 64, "mobilestylegan_128": 128}
FILES = (*GENERATORS, "encoder", "lpips_alex", "identity_facenet", "judge_dlib")
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
    judge = cropping_judge(network("judge_dlib"), 10)
    evaluator = Evaluator(generator, network("lpips_alex"), {"dlib": judge})
    z = np.concatenate([z_of_seed(seed, generator.z_dim) for seed in PEOPLE])
    w = tiny.jitted(generator.mapping, lambda mapping, z: mapping(z, psi=PSI), z)
    return evaluator, w, evaluator.judged(generator, w)


def faces_of(judged):
    """Returns the judge's embeddings of the faces."""
    return judged.faces["dlib"]


def pair_similarities(judged):
    """Returns the similarity of every pair of different people."""
    return strangers(faces_of(judged))


def test_the_bundle_is_under_48_megabytes_and_documented():
    files = list(BUNDLE.glob("*.npz"))
    assert {file.stem for file in files} == {*FILES, "directions"}
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 48e6
    readme = (BUNDLE / "README.md").read_text()
    assert "identity_dlib.npz" not in readme
    for file in files:
        assert file.name in readme
    assert "research use only" in readme


@pytest.mark.parametrize("name", FILES)
def test_every_network_loads_and_records_its_origin(name):
    leaves = flat_leaves(network(name)).values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert read_about(BUNDLE / f"{name}.npz")


@generators
def test_edits_keep_the_person_and_change_the_image(name):
    evaluator, w, judged = people(name)
    generator = network(name)
    shape = generator.num_ws, generator.w_dim
    directions = read_directions(BUNDLE / "directions.npz", *shape)
    assert directions.keys() == {"smile", "pose"}
    for direction in directions.values():
        edited = edits(w, {"one": direction}, (0.4,))
        again = evaluator.judged(generator, edited.astype(np.float32))
        for half in (slice(0, 10), slice(10, 20)):
            faces = faces_of(again)
            part = Faces(faces.embeddings[half], faces.found[half], faces.floor)
            assert similarity(faces_of(judged), part).mean() > 0.85
            change = np.abs(again.images[half] - judged.images).mean()
            assert change > 0.02


@generators
def test_generated_faces_show_different_people(name):
    _, _, judged = people(name)
    side = GENERATORS[name]
    assert judged.images.shape == (10, side, side, 3)
    assert 0.2 < judged.images.std() < 1
    assert pair_similarities(judged).mean() < 0.45


def test_the_student_keeps_its_teachers_identities():
    (_, _, student), (_, _, teacher) = map(people, GENERATORS)
    ours, theirs = faces_of(student), faces_of(teacher)
    each = rescaled(ours.embeddings @ theirs.embeddings.T, ours.floor)
    # At least nine of the ten are nearest to themselves.
    assert np.sum(each.argmax(axis=1) == np.arange(10)) >= 9
    assert np.diag(each).mean() > pair_similarities(teacher).mean() + 0.3


@generators
def test_a_slightly_changed_code_shows_the_same_person(name):
    evaluator, w, judged = people(name)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((10, 1, w.shape[2])).astype(np.float32)
    again = evaluator.judged(network(name), w + 0.03 * noise)
    own = similarity(faces_of(judged), faces_of(again))
    assert own.min() > np.quantile(pair_similarities(judged), 0.95)


@generators
def test_the_loss_and_the_judge_see_people_differently(name):
    _, _, judged = people(name)
    embed = tiny.jitted(network("identity_facenet"), arcface.embed, judged.images)
    seen = faces_of(judged)._replace(embeddings=np.asarray(embed), floor=0.0)
    difference = pair_similarities(judged) - strangers(seen)
    assert np.abs(difference).mean() > 0.05


def test_the_judge_is_not_in_the_loss_and_calibrated_on_real_photos():
    for module in (demo, demo_128, mobile_ffhq):
        roles = module.get_config().networks
        assert roles.identity.path == "demo:identity_facenet.npz"
        assert roles.judge.path == "demo:judge_dlib.npz"
    assert calibration_of("judge", network("judge_dlib"))
    assert calibration_of("judge", network("identity_facenet")) is None


@generators
def test_inversion_recovers_the_person(name):
    evaluator, _, judged = people(name)
    generator, encoder = network(name), network("encoder")
    w = make_encode(encoder, generator)(judged.images)
    again = evaluator.judged(generator, w)
    own = similarity(faces_of(judged), faces_of(again))
    assert own.mean() > pair_similarities(judged).mean() + 0.2
    # The judge would say so of real photos too.
    assert own.min() > calibration_of("judge", network("judge_dlib")).threshold
