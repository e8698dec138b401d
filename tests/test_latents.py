"""A person's codes: from a seed, from one photo, and from several photos."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from configs import default
from guide_jax import inversion, latents, target
from guide_jax.config import read
from guide_jax.erasure import Eraser
from guide_jax.errors import InputError, UnlearningError
from guide_jax.faces.variants import variants
from guide_jax.latents import LatentFinder
from guide_jax.models.edited import edited
from guide_jax.models.generator import ImagePass
from guide_jax.models.network import fill
from guide_jax.people import Person, sampled


@pytest.fixture(scope="module")
def networks():
    loss = tiny.loss_networks()
    return tiny.networks(
        generator=tiny.generator(8),
        encoder=tiny.encoder(num_ws=4),
        lpips=loss.lpips,
        identity=loss.identity,
    )


@pytest.fixture
def photos(tmp_path):
    """Returns the paths of four photos."""
    paths = tuple(tmp_path / f"{i}.png" for i in range(4))
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def finder(networks, **changes):
    """Returns a finder that does not refine, unless the changes say so."""
    config = default.get_config()
    config.source.refine.steps = 0
    config.update_from_flattened_dict(changes)
    return LatentFinder(read(config), networks)


def encoded(networks, images):
    """Returns the encoder's codes."""
    encode = inversion.make_encode(networks["encoder"], networks["generator"])
    return np.asarray(encode(images))


def target_of(networks, w):
    """Returns the target of a code [1, L, D]."""
    mean = networks["generator"].mapping.w_avg[...]
    return np.asarray(target.TARGETS["extra"](jnp.asarray(w), mean, 30.0))


def test_a_seed_gives_one_code_and_no_photos(networks):
    found = finder(networks)(sampled(5))
    assert found.codes.w_u.shape == found.codes.w_target.shape == (1, 4, 7)
    assert found.codes.tests.shape == (0, 4, 7)
    assert (found.photos.paths, found.tests.paths, found.skipped) == ((), (), [])
    assert found.photos.images.shape == found.tests.images.shape == (0, 8, 8, 3)


def test_several_photos_give_a_code_each_with_one_common_target(networks, photos):
    found = finder(networks)(Person("a", "a", photos=photos[:3], tests=photos[3:]))
    assert found.photos.paths == photos[:3]
    assert found.tests.paths == photos[3:]
    images = [np.asarray(Image.open(path)) / 127.5 - 1 for path in photos]
    np.testing.assert_allclose(found.photos.images, images[:3], atol=1e-6)
    np.testing.assert_allclose(found.tests.images, images[3:], atol=1e-6)
    wanted = encoded(networks, np.float32(images))
    codes = found.codes
    np.testing.assert_allclose(codes.w_u, wanted[:3], atol=1e-5)
    np.testing.assert_allclose(codes.tests, wanted[3:], atol=1e-5)
    mean = codes.w_u.mean(0, keepdims=True)
    np.testing.assert_allclose(
        codes.w_target, np.repeat(target_of(networks, mean), 3, 0), atol=1e-4
    )


@pytest.mark.parametrize("count", [0, 1, 4])
def test_one_photo_gives_further_codes_from_altered_copies(networks, photos, count):
    find = finder(networks, **{"source.variants": count})
    found = find(Person("a", "a", photos=photos[:1]))
    copies = variants(found.photos.images, count)
    wanted = encoded(networks, np.concatenate([found.photos.images, copies]))
    np.testing.assert_allclose(found.codes.w_u, wanted, atol=1e-5)
    # The target is that of the photo itself, whose code comes first.
    own = target_of(networks, found.codes.w_u[:1])
    np.testing.assert_allclose(
        found.codes.w_target, np.repeat(own, 1 + count, 0), atol=1e-4
    )
    assert found.photos.paths == photos[:1]


def test_a_test_photo_gets_no_altered_copies(networks, photos):
    found = finder(networks)(Person("a", "a", photos=photos[:1], tests=photos[1:2]))
    assert found.codes.w_u.shape == (5, 4, 7)
    assert found.codes.tests.shape == (1, 4, 7)


def test_unreadable_photos_of_several_are_left_out(networks, photos):
    photos[0].write_text("no photo")
    photos[3].write_text("no photo")
    find = finder(networks)
    found = find(Person("a", "a", photos=photos[:3], tests=photos[3:]))
    assert found.photos.paths == photos[1:3]
    assert found.tests.paths == ()
    assert found.codes.w_u.shape == (2, 4, 7)
    assert found.codes.tests.shape == (0, 4, 7)
    assert len(found.skipped) == 2
    for path, line in zip((photos[0], photos[3]), found.skipped, strict=True):
        assert line.startswith(f"{path}: not a readable image")
    # If a single one is left, it gets altered copies.
    photos[1].write_text("no photo")
    found = find(Person("a", "a", photos=photos[:3]))
    assert found.photos.paths == photos[2:3]
    assert found.codes.w_u.shape == (5, 4, 7)


def test_a_person_without_a_readable_photo_is_an_error(networks, photos):
    for path in photos[:2]:
        path.write_text("no photo")
    with pytest.raises(InputError) as caught:
        finder(networks)(Person("a", "a", photos=photos[:2], tests=photos[2:]))
    text = str(caught.value)
    assert "\n" not in text
    for path in photos[:2]:
        assert f"{path}: not a readable image" in text


@pytest.mark.parametrize("role", ["encoder", "generator"])
def test_a_code_that_is_not_finite_is_an_error(networks, photos, role):
    leaves = tiny.flat(networks[role])
    for name, leaf in leaves.items():
        if role == "encoder" or name.startswith("mapping."):
            leaf[...] = np.nan
    made = networks.by_role | {role: fill(networks[role], leaves)}
    person = Person("a", "a", photos=photos)
    if role == "generator":
        person = sampled(5)
        made = {k: x for k, x in made.items() if k != "encoder"}
    with pytest.raises(UnlearningError, match=r"code is not finite \(code 0 of"):
        finder(tiny.networks(**made))(person)


def test_photos_are_refined_from_the_encoder_s_code_and_copies_from_the_photo_s(
    networks, photos, monkeypatch
):
    made, starts, names = [], [], []

    def make_refine(*args):
        made.append(args)

        def refine(w, photo, name):
            starts.append(np.asarray(w))
            names.append(name)
            return w + len(starts)

        return refine

    monkeypatch.setattr(latents.inversion, "make_refine", make_refine)
    changes = {
        "source.refine.steps": 7,
        "source.refine.learning_rate": 0.5,
        "source.refine.id_weight": 1.5,
        "source.refine.prior_weight": 2.5,
        "source.refine.layers_weight": 3.5,
        "source.variants": 2,
    }
    find = finder(networks, **changes)
    found = find(Person("a", "a", photos=photos[:1], tests=photos[1:2]))
    ((*given, prior, settings, _),) = made
    assert given == [networks[role] for role in ("generator", "lpips", "identity")]
    assert prior is find.prior
    assert settings == inversion.Refine(7, 0.5, 1.5, 2.5, 3.5)
    copies = ["copy 1 of 2", "copy 2 of 2"]
    assert names == ["photo 1 of 1", *copies, "test photo 1 of 1"]
    own, test = encoded(
        networks, np.concatenate([found.photos.images, found.tests.images])
    )
    for start, wanted in zip(starts, (own, own + 1, own + 1, test), strict=True):
        np.testing.assert_allclose(start[0], wanted, atol=1e-5)
    for code, wanted in zip(found.codes.w_u, (own + 1, own + 3, own + 4), strict=True):
        np.testing.assert_allclose(code, wanted, atol=1e-5)
    np.testing.assert_allclose(found.codes.tests[0], test + 4, atol=1e-5)


def test_an_erased_person_s_target_is_what_the_edited_generator_shows(networks):
    changes = {"method": "erase", "steps": 0, "source.variants": 2}
    changes |= {"erase.steps": 2, "erase.rounds": 1}
    found = finder(networks, **changes)(sampled(1))
    assert len(found.codes.w_u) == 1 + 3
    generator = networks["generator"]
    unlearned = nnx.clone(generator)
    w_avg = np.asarray(generator.mapping.w_avg[...])
    unlearned.synthesis = edited(generator.synthesis, found.changes, w_avg)
    images = ImagePass(generator, 1)
    wanted = images(generator, found.codes.w_target)
    np.testing.assert_allclose(images(unlearned, found.codes.w_u), wanted, atol=1e-4)
    assert np.abs(images(generator, found.codes.w_u) - wanted).max() > 1e-3


def test_photos_codes_before_refinement_are_erased_too(networks, photos, monkeypatch):
    groups = []

    def erase(self, given, images, starts, *rest):
        groups.append(given)
        assert len(images) == len(starts) == len(given[0])
        return np.zeros((4, 7, 7))

    monkeypatch.setattr(Eraser, "__call__", erase)
    changes = {"method": "erase", "steps": 0, "source.refine.steps": 2}
    find = finder(networks, **changes)
    found = find(Person("a", "a", photos=photos[:3]))
    assert found.codes.w_u.shape[0] == 6
    refined, before = groups[0]
    np.testing.assert_array_equal(refined, found.codes.w_u[:3])
    wanted = encoded(networks, found.photos.images)
    np.testing.assert_allclose(before, wanted, atol=1e-5)
    assert np.abs(refined - before).max() > 1e-4


def test_without_an_encoder_a_person_is_erased_all_the_same(networks):
    roles = ("generator", "lpips", "identity")
    made = tiny.networks(**{role: networks[role] for role in roles})
    changes = {"method": "erase", "steps": 0, "erase.steps": 2, "erase.rounds": 1}
    found = finder(made, **changes)(sampled(1))
    assert found.codes.w_u.shape[0] == 1
    assert np.isfinite(found.changes).all()


def test_without_an_encoder_there_is_no_prior(networks):
    roles = ("generator", "lpips", "identity")
    find = finder(tiny.networks(**{role: networks[role] for role in roles}))
    assert find.prior is None
    assert find(sampled(1)).codes.w_u.shape == (1, 4, 7)
