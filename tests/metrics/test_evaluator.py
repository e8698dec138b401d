"""The measures of an unlearned generator, computed in batches and combined."""

import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.metrics.evaluator import BATCH, Evaluator, Judged, Kept
from guide_jax.metrics.judges import Faces, cropping_judge
from guide_jax.models import arcface

COUNT = BATCH + 3  # the second batch is not full


def faces(embeddings):
    return Faces(embeddings, np.ones(len(embeddings), bool))


@pytest.fixture(scope="module")
def setting():
    generator, networks = tiny.generator(8), tiny.loss_networks()
    w = np.random.default_rng(0).standard_normal((COUNT, 4, 7)).astype(np.float32)
    named = {"judge": cropping_judge(networks.identity, BATCH)}
    evaluator = Evaluator(generator, networks.lpips, named)
    return generator, networks, w, evaluator, evaluator.judged(generator, w)


def brightened(generator):
    other = nnx.clone(generator)
    other.synthesis.b8.torgb.bias[...] = other.synthesis.b8.torgb.bias[...] + 1
    return other


def test_batches_equal_one_pass_over_all(setting):
    generator, networks, w, _, judged = setting
    modules = nnx.Dict(synthesis=generator.synthesis, identity=networks.identity)

    def direct(modules, w):
        images, _ = modules.synthesis(w)
        return images, arcface.embed(modules.identity, images)

    images, embeddings = tiny.jitted(modules, direct, w)
    found_faces = judged.faces["judge"]
    assert judged.images.shape == (COUNT, 8, 8, 3)
    np.testing.assert_allclose(judged.images, images, atol=1e-5)
    np.testing.assert_allclose(found_faces.embeddings, embeddings, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(found_faces.embeddings, axis=1), 1, atol=1e-5
    )
    assert found_faces.found.all()


def test_lpips_in_batches_equals_lpips_of_each_pair(setting):
    _, networks, _, evaluator, judged = setting
    others = judged.images[::-1]
    got = evaluator.lpips(judged.images, others)
    wanted = tiny.jitted(networks.lpips, lambda m, a, b: m(a, b), judged.images, others)
    assert got.shape == (COUNT,)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert got[0] > 0.01
    assert got[COUNT // 2] == pytest.approx(0, abs=1e-6)  # itself


def test_another_generator_uses_the_same_pass(setting):
    generator, _, w, evaluator, judged = setting
    np.testing.assert_allclose(
        evaluator.images(brightened(generator), w), judged.images + 1, atol=1e-4
    )


def test_an_unchanged_generator_keeps_all_identities(setting):
    generator, _, w, evaluator, _ = setting
    own = evaluator.judged(generator, w[:1])
    found = evaluator.compare(evaluator.kept(generator, w, 2), (own, own))
    measures = found["measures"]
    for name in ("id", "id_kept", "id_kept_worst"):
        assert measures[name] == pytest.approx(1, abs=1e-6)
    for name in ("lpips_person", "lpips_kept", "no_face"):
        assert measures[name] == pytest.approx(0, abs=1e-6)
    assert "id_others" not in measures  # no test photos


@pytest.mark.parametrize("shown", [0, 2, BATCH + 1])
def test_others_are_judged_in_batches_and_some_images_kept(setting, shown):
    generator, _, w, evaluator, judged = setting
    other = brightened(generator)
    changed = evaluator.judged(other, w)
    kept = evaluator.kept(other, w, shown)
    for kept_faces, wanted in ((kept.before, judged), (kept.after, changed)):
        np.testing.assert_allclose(
            kept_faces["judge"].embeddings, wanted.faces["judge"].embeddings, atol=1e-5
        )
    np.testing.assert_allclose(
        kept.lpips, evaluator.lpips(judged.images, changed.images), atol=1e-5
    )
    assert [len(images) for images in kept.shown] == [shown, shown]
    np.testing.assert_allclose(kept.shown[0], judged.images[:shown], atol=1e-5)
    np.testing.assert_allclose(kept.shown[1], changed.images[:shown], atol=1e-5)


def test_compare_equals_numpy(setting):
    _, _, _, evaluator, judged = setting
    a = judged.faces["judge"].embeddings
    images = judged.images
    person = (
        Judged(images[:1], {"judge": faces(a[:1])}),
        Judged(images[-1:], {"judge": faces(a[-1:])}),
    )
    tests = {"judge": faces(a[:3])}, {"judge": faces(a[3:6])}
    lpips = np.linspace(0, 1, COUNT)
    none = (images[:0], images[:0])
    kept = Kept({"judge": faces(a)}, {"judge": faces(a[::-1])}, lpips, none)
    found = evaluator.compare(kept, person, tests)
    measures = found["measures"]
    assert found["judges"] == {}

    a = a.astype(float)
    own = [x @ y for x, y in zip(a, a[::-1], strict=True)]
    pairs = [a[i] @ a[j] for i in range(COUNT) for j in range(i)]
    wanted = {
        "id": a[0] @ a[-1],
        "id_others": np.mean([a[i] @ a[i + 3] for i in range(3)]),
        "id_strangers": np.mean(pairs),
        "lpips_person": evaluator.lpips(images[:1], images[-1:])[0],
        "id_kept": np.mean(own),
        "id_kept_worst": min(own),
        "lpips_kept": 0.5,
        "people_kept": COUNT,
        "no_face": 0,
    }
    assert list(measures) == list(wanted)
    for name, value in wanted.items():
        assert measures[name] == pytest.approx(value, abs=1e-5), name
        assert type(measures[name]) in (float, int), name  # JSON takes them


def test_images_without_a_face_are_counted_and_left_out(setting):
    generator, networks, w, _, judged = setting
    faceless = judged.images[2], judged.images[5]

    def judge(images):
        has_face = [
            not any(np.allclose(x, b, atol=1e-4) for b in faceless) for x in images
        ]
        whole = cropping_judge(networks.identity, BATCH)(images)
        return Faces(whole.embeddings * np.array(has_face)[:, None], np.array(has_face))

    evaluator = Evaluator(
        generator,
        networks.lpips,
        {"first": judge, "second": cropping_judge(networks.identity, BATCH)},
    )
    other = brightened(generator)
    kept = evaluator.kept(other, w, 0)
    own = evaluator.judged(generator, w[2:3]), evaluator.judged(other, w[2:3])
    found = evaluator.compare(kept, own)
    measures, second = found["measures"], found["judges"]["second"]
    assert measures["id"] is None
    assert measures["no_face"] == 3  # the person before, and two of the others
    assert second["no_face"] == 0
    assert second["id"] == pytest.approx(
        np.sum(own[0].faces["second"].embeddings * own[1].faces["second"].embeddings)
    )
    a, b = kept.before["second"].embeddings, kept.after["second"].embeddings
    cosines = np.sum(a * b, axis=1)
    assert measures["id_kept"] == pytest.approx(np.delete(cosines, [2, 5]).mean())
    assert second["id_kept"] == pytest.approx(cosines.mean())


def test_an_image_matches_itself_perfectly_and_another_less(setting):
    generator, _, w, evaluator, _ = setting
    first, second = (evaluator.judged(generator, code[None]) for code in w[:2])
    assert evaluator.inversion(first.images, first) == {
        "id": pytest.approx(1, abs=1e-5),
        "lpips": pytest.approx(0, abs=1e-6),
    }
    other = evaluator.inversion(first.images, second)
    assert other["id"] < 0.999
    assert other["lpips"] > 0.01
