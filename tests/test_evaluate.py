import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from guide_jax.evaluate import BATCH, MEASURES, Evaluator, Looks, Others
from guide_jax.models import arcface

COUNT = BATCH + 3  # the second batch is not full


@pytest.fixture(scope="module")
def setting():
    generator, judges = tiny.generator(8), tiny.judges()
    w = np.random.default_rng(0).standard_normal((COUNT, 4, 7)).astype(np.float32)
    evaluator = Evaluator(generator, judges)
    return generator, judges, w, evaluator, evaluator.look(generator, w)


def test_batches_give_what_one_pass_over_all_gives(setting):
    generator, judges, w, _, looks = setting
    modules = nnx.Dict(synthesis=generator.synthesis, identity=judges.identity)

    def direct(modules, w):
        images, _ = modules.synthesis(w)
        return images, arcface.embed(modules.identity, images)

    images, embeddings = tiny.jitted(modules, direct, w)
    assert looks.images.shape == (COUNT, 8, 8, 3)
    np.testing.assert_allclose(looks.images, images, atol=1e-5)
    np.testing.assert_allclose(looks.embeddings, embeddings, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(looks.embeddings, axis=1), 1, atol=1e-5)


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
    other = nnx.clone(generator)
    other.synthesis.b8.torgb.bias[...] = other.synthesis.b8.torgb.bias[...] + 1
    np.testing.assert_allclose(
        evaluator.look(other, w).images, looks.images + 1, atol=1e-4
    )


def test_embed_is_what_look_embeds(setting):
    *_, evaluator, looks = setting
    np.testing.assert_allclose(
        evaluator.embed(looks.images), looks.embeddings, atol=1e-5
    )


def test_a_generator_that_forgot_nothing_keeps_all_identities(setting):
    generator, _, w, evaluator, looks = setting
    own = Looks(looks.images[:1], looks.embeddings[:1])
    others = evaluator.others(generator, generator, w, 2)
    measures = evaluator.compare(others, (own, own))
    for name in ("id", "id_others", "id_others_worst"):
        assert measures[name] == pytest.approx(1, abs=1e-6)
    for name in ("lpips_person", "lpips_others"):
        assert measures[name] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shown", [0, 2, BATCH + 1])
def test_others_are_looked_at_in_batches_and_some_pictures_kept(setting, shown):
    generator, _, w, evaluator, looks = setting
    other = nnx.clone(generator)
    other.synthesis.b8.torgb.bias[...] = other.synthesis.b8.torgb.bias[...] + 1
    changed = evaluator.look(other, w)
    others = evaluator.others(generator, other, w, shown)
    np.testing.assert_allclose(others.before, looks.embeddings, atol=1e-5)
    np.testing.assert_allclose(others.after, changed.embeddings, atol=1e-5)
    np.testing.assert_allclose(
        others.lpips, evaluator.lpips(looks.images, changed.images), atol=1e-5
    )
    assert [len(pictures) for pictures in others.shown] == [shown, shown]
    np.testing.assert_allclose(others.shown[0], looks.images[:shown], atol=1e-5)
    np.testing.assert_allclose(others.shown[1], changed.images[:shown], atol=1e-5)


def test_compare_equals_numpy(setting):
    _, _, _, evaluator, looks = setting
    changed = Looks(looks.images[::-1], looks.embeddings[::-1])
    person = tuple(Looks(x.images[:1], x.embeddings[:1]) for x in (looks, changed))
    lpips = np.linspace(0, 1, COUNT)
    none = (looks.images[:0], looks.images[:0])
    others = Others(looks.embeddings, changed.embeddings, lpips, none)
    measures = evaluator.compare(others, person)
    assert list(measures) == list(MEASURES)

    a, b = looks.embeddings.astype(float), changed.embeddings.astype(float)
    own = [x @ y for x, y in zip(a, b, strict=True)]
    pairs = [a[i] @ a[j] for i in range(COUNT) for j in range(i)]
    wanted = {
        "id": a[0] @ b[0],
        "id_strangers": np.mean(pairs),
        "lpips_person": evaluator.lpips(looks.images[:1], changed.images[:1])[0],
        "id_others": np.mean(own),
        "id_others_worst": min(own),
        "lpips_others": 0.5,
        "others": COUNT,
    }
    for name, value in wanted.items():
        assert measures[name] == pytest.approx(value, abs=1e-5), name
        assert type(measures[name]) in (float, int), name  # JSON takes them


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


def test_looks_are_numpy_arrays_of_float32(setting):
    *_, looks = setting
    for array in looks:
        assert isinstance(array, np.ndarray)
        assert array.dtype == jnp.float32
