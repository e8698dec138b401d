import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.metrics.evaluator import BATCH, Evaluator, Kept, View, measures_in
from guide_jax.metrics.identity import Faces, cropping
from guide_jax.models import arcface

COUNT = BATCH + 3  # the second batch is not full


def faces(embeddings):
    return Faces(embeddings, np.ones(len(embeddings), bool))


@pytest.fixture(scope="module")
def setting():
    generator, judges = tiny.generator(8), tiny.judges()
    w = np.random.default_rng(0).standard_normal((COUNT, 4, 7)).astype(np.float32)
    named = {"judge": cropping(judges.identity, BATCH)}
    evaluator = Evaluator(generator, judges.lpips, named)
    return generator, judges, w, evaluator, evaluator.look(generator, w)


def changed_one(generator):
    other = nnx.clone(generator)
    other.synthesis.b8.torgb.bias[...] = other.synthesis.b8.torgb.bias[...] + 1
    return other


def test_batches_give_what_one_pass_over_all_gives(setting):
    generator, judges, w, _, looks = setting
    modules = nnx.Dict(synthesis=generator.synthesis, identity=judges.identity)

    def direct(modules, w):
        images, _ = modules.synthesis(w)
        return images, arcface.embed(modules.identity, images)

    images, embeddings = tiny.jitted(modules, direct, w)
    seen = looks.faces["judge"]
    assert looks.images.shape == (COUNT, 8, 8, 3)
    np.testing.assert_allclose(looks.images, images, atol=1e-5)
    np.testing.assert_allclose(seen.embeddings, embeddings, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(seen.embeddings, axis=1), 1, atol=1e-5)
    assert seen.found.all()


def test_lpips_in_batches_is_that_of_each_pair(setting):
    _, judges, _, evaluator, looks = setting
    others = looks.images[::-1]
    got = evaluator.lpips(looks.images, others)
    wanted = tiny.jitted(judges.lpips, lambda m, a, b: m(a, b), looks.images, others)
    assert got.shape == (COUNT,)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert got[0] > 0.01
    assert got[COUNT // 2] == pytest.approx(0, abs=1e-6)  # itself


def test_another_generator_is_looked_at_by_the_same_pass(setting):
    generator, _, w, evaluator, looks = setting
    np.testing.assert_allclose(
        evaluator.show(changed_one(generator), w), looks.images + 1, atol=1e-4
    )


def test_a_generator_that_forgot_nothing_keeps_all_identities(setting):
    generator, _, w, evaluator, _ = setting
    own = evaluator.look(generator, w[:1])
    measures = evaluator.compare(evaluator.kept(generator, w, 2), (own, own))
    for name in ("id", "id_kept", "id_kept_worst"):
        assert measures[name] == pytest.approx(1, abs=1e-6)
    for name in ("lpips_person", "lpips_kept", "no_face"):
        assert measures[name] == pytest.approx(0, abs=1e-6)
    assert "id_others" not in measures  # there is no other photo


@pytest.mark.parametrize("shown", [0, 2, BATCH + 1])
def test_others_are_looked_at_in_batches_and_some_pictures_kept(setting, shown):
    generator, _, w, evaluator, looks = setting
    other = changed_one(generator)
    changed = evaluator.look(other, w)
    kept = evaluator.kept(other, w, shown)
    for mine, view in ((kept.before, looks), (kept.after, changed)):
        np.testing.assert_allclose(
            mine["judge"].embeddings, view.faces["judge"].embeddings, atol=1e-5
        )
    np.testing.assert_allclose(
        kept.lpips, evaluator.lpips(looks.images, changed.images), atol=1e-5
    )
    assert [len(pictures) for pictures in kept.shown] == [shown, shown]
    np.testing.assert_allclose(kept.shown[0], looks.images[:shown], atol=1e-5)
    np.testing.assert_allclose(kept.shown[1], changed.images[:shown], atol=1e-5)


def test_compare_equals_numpy(setting):
    _, _, _, evaluator, looks = setting
    a = looks.faces["judge"].embeddings
    images = looks.images
    person = (
        View(images[:1], {"judge": faces(a[:1])}),
        View(images[-1:], {"judge": faces(a[-1:])}),
    )
    tests = {"judge": faces(a[:3])}, {"judge": faces(a[3:6])}
    lpips = np.linspace(0, 1, COUNT)
    none = (images[:0], images[:0])
    kept = Kept({"judge": faces(a)}, {"judge": faces(a[::-1])}, lpips, none)
    measures = evaluator.compare(kept, person, tests)

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


def test_pictures_without_a_face_are_counted_and_left_out(setting):
    generator, judges, w, _, looks = setting
    blind = looks.images[2], looks.images[5]

    def judge(images):
        seen = [not any(np.allclose(x, b, atol=1e-4) for b in blind) for x in images]
        whole = cropping(judges.identity, BATCH)(images)
        return Faces(whole.embeddings * np.array(seen)[:, None], np.array(seen))

    evaluator = Evaluator(
        generator,
        judges.lpips,
        {"first": judge, "second": cropping(judges.identity, BATCH)},
    )
    other = changed_one(generator)
    kept = evaluator.kept(other, w, 0)
    own = evaluator.look(generator, w[2:3]), evaluator.look(other, w[2:3])
    measures = evaluator.compare(kept, own)
    assert measures["id"] is None
    assert measures["no_face"] == 3  # the person before, and two of the others
    assert measures["no_face_second"] == 0
    assert measures["id_second"] == pytest.approx(
        np.sum(own[0].faces["second"].embeddings * own[1].faces["second"].embeddings)
    )
    a, b = kept.before["second"].embeddings, kept.after["second"].embeddings
    cosines = np.sum(a * b, axis=1)
    assert measures["id_kept"] == pytest.approx(np.delete(cosines, [2, 5]).mean())
    assert measures["id_kept_second"] == pytest.approx(cosines.mean())


def test_a_picture_is_perfectly_like_itself_and_less_like_another(setting):
    generator, _, w, evaluator, _ = setting
    first, second = (evaluator.look(generator, code[None]) for code in w[:2])
    assert evaluator.likeness(first.images, first) == {
        "id": pytest.approx(1, abs=1e-5),
        "lpips": pytest.approx(0, abs=1e-6),
    }
    other = evaluator.likeness(first.images, second)
    assert other["id"] < 0.999
    assert other["lpips"] > 0.01


def test_measures_are_found_among_other_results_and_in_order():
    names = ["title", "id_kept", "id_facenet", "id", "identity", "fid_pre", "seconds"]
    wanted = ["id_facenet", "id", "fid_pre", "id_kept"]
    assert measures_in(dict.fromkeys(names, 0.5)) == wanted
