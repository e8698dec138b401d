"""The measures of an unlearned generator, computed in batches and combined."""

import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.metrics.evaluator import BATCH, Evaluator, Judged, Kept
from guide_jax.metrics.judges import Faces, cropping_judge
from guide_jax.models import arcface
from guide_jax.models.eg3d import cameras

COUNT = BATCH + 3  # the second batch is not full


def faces(embeddings, floor=0.0):
    return Faces(embeddings, np.ones(len(embeddings), bool), floor)


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


def test_a_3d_person_is_judged_from_eleven_sides():
    generator, networks = tiny.eg3d(), tiny.loss_networks()
    w = np.random.default_rng(0).standard_normal((2, 6, 7)).astype(np.float32)
    judge = cropping_judge(networks.identity, BATCH)
    evaluator = Evaluator(generator, networks.lpips, {"judge": judge})
    seen = evaluator.judged(generator, w)
    camera = cameras.look_at(np.radians(np.arange(-15, 16, 3)), -0.2)
    wanted = [
        judge(evaluator.images(generator, np.stack([code] * 11), camera=camera))
        for code in w
    ]
    found = seen.views["judge"].embeddings
    np.testing.assert_allclose(
        found, np.concatenate([x.embeddings for x in wanted]), atol=1e-5
    )
    assert np.abs(found[0] - found[10]).max() > 1e-3
    one, other = (evaluator.judged(generator, w[i : i + 1]) for i in range(2))
    measures = evaluator.compare(evaluator.kept(generator, w, 0), (one, other))
    cosines = np.sum(found[:11] * found[11:], axis=1)
    assert measures["measures"]["id"] == pytest.approx(cosines.mean(), abs=1e-5)


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
    for name in ("id_others", "id_photo", "id_photo_others"):
        assert name not in measures  # no photos


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
    further = {
        "id_photo_others": ({"judge": faces(a[5:6])}, {"judge": faces(a[2:3])}),
        "id_others": ({"judge": faces(a[:3])}, {"judge": faces(a[3:6])}),
        "id_photo": ({"judge": faces(a[1:2])}, {"judge": faces(a[4:5])}),
    }
    lpips = np.linspace(0, 1, COUNT)
    none = (images[:0], images[:0])
    kept = Kept({"judge": faces(a)}, {"judge": faces(a[::-1])}, lpips, none)
    found = evaluator.compare(kept, person, further)
    measures = found["measures"]
    assert found["judges"] == {}

    a = a.astype(float)
    own = [x @ y for x, y in zip(a, a[::-1], strict=True)]
    pairs = [a[i] @ a[j] for i in range(COUNT) for j in range(i)]
    wanted = {
        "id": a[0] @ a[-1],
        "id_others": np.mean([a[i] @ a[i + 3] for i in range(3)]),
        "id_photo": a[1] @ a[4],
        "id_photo_others": a[5] @ a[2],
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


def test_every_similarity_is_rescaled_by_the_judge_s_floor(setting):
    _, _, _, evaluator, judged = setting
    a, images = judged.faces["judge"].embeddings, judged.images

    def measured(floor):
        def each(part):
            return {"judge": faces(part, floor)}

        own = Judged(images[:1], each(a[:1])), Judged(images[-1:], each(a[-1:]))
        none = (images[:0], images[:0])
        kept = Kept(each(a), each(a[::-1]), np.zeros(COUNT), none)
        further = {"id_photo": (each(a[1:2]), each(a[4:5]))}
        return evaluator.compare(kept, own, further)["measures"]

    plain, rescaled = measured(0.0), measured(0.75)
    names = ["id", "id_photo", "id_strangers", "id_kept", "id_kept_worst"]
    assert [name for name in plain if name.startswith("id")] == names
    for name, value in plain.items():
        wanted = (value - 0.75) / 0.25 if name in names else value
        assert rescaled[name] == pytest.approx(wanted, abs=1e-5), name


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
    found = evaluator.compare(kept, own, {})
    measures, second = found["measures"], found["judges"]["second"]
    assert measures["id"] is None
    assert measures["no_face"] == 3  # the person before, and two of the others
    assert second["no_face"] == 0
    assert second["id"] == pytest.approx(
        np.sum(own[0].faces["second"].embeddings * own[1].faces["second"].embeddings)
    )
    # An image that several measures compare counts once; the photo has no face either.
    blank = Faces(np.zeros((1, 5), np.float32), np.zeros(1, bool))
    further = {"id_photo": ({"first": blank, "second": blank}, own[0].faces)}
    again = evaluator.compare(kept, own, further)
    assert again["measures"]["no_face"] == 4
    assert again["judges"]["second"]["no_face"] == 1
    assert again["measures"]["id_photo"] is None
    a, b = kept.before["second"].embeddings, kept.after["second"].embeddings
    cosines = np.sum(a * b, axis=1)
    assert measures["id_kept"] == pytest.approx(np.delete(cosines, [2, 5]).mean())
    assert second["id_kept"] == pytest.approx(cosines.mean())


def test_an_image_matches_itself_perfectly_and_another_less(setting):
    generator, _, w, evaluator, _ = setting
    first, second = (evaluator.judged(generator, code[None]) for code in w[:2])
    assert evaluator.inversion(first, first) == {
        "id": pytest.approx(1, abs=1e-5),
        "lpips": pytest.approx(0, abs=1e-6),
        "judges": {},
    }
    other = evaluator.inversion(first, second)
    assert other["id"] < 0.999
    assert other["lpips"] > 0.01


def test_inversion_averages_over_photos_and_lists_each_judge(setting):
    generator, networks, _, _, judged = setting
    judge = cropping_judge(networks.identity, BATCH)
    named = {"first": judge, "second": judge, "third": judge}
    evaluator = Evaluator(generator, networks.lpips, named)
    a, images = judged.faces["judge"].embeddings.astype(float), judged.images
    seen, unseen = np.array([True, False]), np.array([False, False])

    def parts(rows):
        whole = faces(a[rows])
        return Judged(
            images[rows],
            {
                "first": whole,
                "second": Faces(whole.embeddings, seen),
                "third": Faces(whole.embeddings, unseen),
            },
        )

    found = evaluator.inversion(parts([0, 1]), parts([2, 3]))
    cosines = a[0] @ a[2], a[1] @ a[3]
    assert found["id"] == pytest.approx(np.mean(cosines))
    assert found["judges"]["second"] == {"id": pytest.approx(cosines[0])}
    assert found["judges"]["third"] == {"id": None}
    assert list(found["judges"]) == ["second", "third"]
    lpips = evaluator.lpips(images[:2], images[2:4])
    assert found["lpips"] == pytest.approx(lpips.mean())
