"""FID against the original generator and real photos, and its cache."""

import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from configs import default
from guide_jax.config import read
from guide_jax.errors import InputError, UnlearningError
from guide_jax.faces.photos import to_uint8
from guide_jax.metrics import fid, fid_statistics
from guide_jax.metrics.fid import FidMeasure


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(8)


def measure(generator, cache, real="", samples=7, seed=1):
    networks = tiny.networks(generator=generator, inception=tiny.inception())
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "evaluate.fid_samples": samples,
            "evaluate.fid_real": str(real),
            "evaluate.seed": seed,
            "evaluate.batch": 3,
        }
    )
    return FidMeasure(networks, read(config).evaluate, psi=0.5, cache=cache)


def changed(generator, by):
    other = nnx.clone(generator)
    bias = other.synthesis.b8.torgb.bias
    bias[...] = bias[...] + by
    return other


def generated_images(generator, samples=7):
    z = np.random.default_rng(1).standard_normal((samples, 8)).astype(np.float32)
    w = tiny.jitted(generator.mapping, lambda m, z: m(z, psi=0.5), z)
    return np.asarray(tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w))


def test_fid_compares_images_of_the_same_latents(generator, tmp_path):
    features = fid_statistics.Features(tiny.inception())
    other = changed(generator, 0.5)
    before, after = (
        fid_statistics.Statistics.of(
            features(to_uint8(generated_images(x)) / np.float32(127.5) - 1)
        )
        for x in (generator, other)
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    found = measure(generator, tmp_path / "cache", photos)(other)
    assert found["fid_samples"] == 7
    assert found["fid_pre"] == pytest.approx(
        fid_statistics.distance(before, after), rel=1e-3
    )
    assert found["fid_pre"] > 1e-3
    real = fid.fid_sources.of_folder(features, photos)[0]
    increase = fid_statistics.distance(real, after) - fid_statistics.distance(
        real, before
    )
    assert found["delta_fid_real"] == pytest.approx(increase, rel=1e-3, abs=1e-6)


def test_images_of_a_3d_generator_have_views_of_their_own(monkeypatch, tmp_path):
    generator, rng = tiny.eg3d(), np.random.default_rng(1)
    z = rng.standard_normal((7, 8)).astype(np.float32)
    views = generator.views_of_samples(1, 7)["camera"]
    assert len(np.unique(np.asarray(views), axis=0)) == 7

    def shown(**view):
        w = tiny.jitted(generator.mapping, lambda m, z: m(z, psi=0.5), z)
        return np.asarray(
            tiny.jitted(generator.synthesis, lambda m, w, v: m(w, **v)[0], w, view)
        )

    seen = []
    features = fid_statistics.Features.of_images

    def of_images(self, images, *rest):
        seen.append(np.concatenate(list(images)))
        return features(self, iter(seen[-1:]), *rest)

    monkeypatch.setattr(fid_statistics.Features, "of_images", of_images)
    measure(generator, tmp_path)
    np.testing.assert_allclose(seen[0], shown(camera=views), atol=1e-4)
    assert np.abs(seen[0] - shown()).max() > 0.1


def test_the_original_has_zero_fid_to_itself(generator, tmp_path):
    found = measure(generator, tmp_path)(generator)
    assert found.keys() == {"fid_pre", "fid_samples"}
    assert found["fid_pre"] == pytest.approx(0, abs=1e-9)


def test_statistics_of_the_original_are_cached_for_other_runs(
    generator, tmp_path, monkeypatch
):
    labels = []
    of_images = fid_statistics.Features.of_images

    def recording(self, batches, total=None, label=""):
        labels.append(label)
        return of_images(self, batches, total, label)

    monkeypatch.setattr(fid_statistics.Features, "of_images", recording)
    for _ in range(2):
        measure(generator, tmp_path)
    assert labels == ["FID, original"]
    measure(changed(generator, 1), tmp_path)
    measure(generator, tmp_path, samples=6)
    measure(generator, tmp_path, seed=2)
    assert len(labels) == 4


def test_missing_real_photos_are_reported_first(generator, tmp_path):
    with pytest.raises(InputError, match="none: no such feature file"):
        measure(generator, tmp_path, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_broken_generator_gives_a_one_line_error(generator, tmp_path):
    measured = measure(generator, tmp_path)
    with pytest.raises(UnlearningError, match="FID, unlearned: the generator's images"):
        measured(changed(generator, np.nan))


def test_a_tensorflow_dataset_is_read_without_tensorflow(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9, 9, 3), np.uint8) for _ in range(4)]
    splits = []

    def data_source(name, split):
        if name != "faces/9":
            raise ValueError("Builder not found\nmore\nlines")
        splits.append(split)
        return [{"image": image, "label": 3} for image in images]

    monkeypatch.setattr(tfds, "data_source", data_source)
    features = fid_statistics.Features(tiny.inception())
    found = fid.fid_sources.of_dataset(features, "faces/9:test")
    wanted = fid_statistics.Statistics.of(
        features(np.stack(images) / np.float32(127.5) - 1)
    )
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-5, atol=1e-6)
    fid.fid_sources.of_dataset(features, "faces/9")
    assert splits == ["test", "train"]
    with pytest.raises(InputError, match=r"tfds:no: cannot be .*Builder not found"):
        fid.fid_sources.of_dataset(features, "no")


def test_made_of_changes_with_the_real_photos(generator, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i * 80, 0, 0)).save(photos / f"{i}.png")
    first = measure(generator, tmp_path / "cache", photos).made_of
    assert measure(generator, tmp_path / "cache", photos).made_of == first
    Image.new("RGB", (9, 9), "white").save(photos / "0.png")
    assert measure(generator, tmp_path / "cache", photos).made_of != first
    assert measure(generator, tmp_path / "cache").made_of != first


def test_an_unwritable_cache_is_reported_before_the_work(generator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"cannot write FID statistics there.*config\.cache"
    ):
        measure(generator, tmp_path / "file" / "cache")
