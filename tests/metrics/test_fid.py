import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from guide_jax.errors import InputError, UnlearningError
from guide_jax.faces.photos import to_uint8
from guide_jax.metrics import fid, fid_statistics
from guide_jax.metrics.fid import FidMeasure


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(8)


def measure(generator, cache, real="", samples=7, seed=1):
    return FidMeasure(
        generator, tiny.inception(), samples=samples, psi=0.5, seed=seed, batch=3,
        real=str(real), cache=cache,
    )  # fmt: skip


def changed(generator, by):
    other = nnx.clone(generator)
    bias = other.synthesis.b8.torgb.bias
    bias[...] = bias[...] + by
    return other


def pictures(generator, samples=7):
    z = np.random.default_rng(1).standard_normal((samples, 8)).astype(np.float32)
    w = tiny.jitted(generator.mapping, lambda m, z: m(z, psi=0.5), z)
    return np.asarray(tiny.jitted(generator.synthesis, lambda m, w: m(w)[0], w))


def test_fids_are_those_of_the_same_latents_pictures(generator, tmp_path):
    features = fid_statistics.Features(tiny.inception())
    other = changed(generator, 0.5)
    before, after = (
        fid_statistics.Statistics.of(
            features(to_uint8(pictures(x)) / np.float32(127.5) - 1)
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
    grown = fid_statistics.distance(real, after) - fid_statistics.distance(real, before)
    assert found["delta_fid_real"] == pytest.approx(grown, rel=1e-3, abs=1e-6)


def test_the_original_is_no_way_from_itself(generator, tmp_path):
    found = measure(generator, tmp_path)(generator)
    assert found.keys() == {"fid_pre", "fid_samples"}
    assert found["fid_pre"] == pytest.approx(0, abs=1e-9)


def test_the_original_s_half_is_kept_for_other_runs(generator, tmp_path, monkeypatch):
    made = []
    of_images = fid_statistics.Features.of_images

    def noted(self, batches, total=None, label=""):
        made.append(label)
        return of_images(self, batches, total, label)

    monkeypatch.setattr(fid_statistics.Features, "of_images", noted)
    for _ in range(2):
        measure(generator, tmp_path)
    assert made == ["FID, original"]
    measure(changed(generator, 1), tmp_path)
    measure(generator, tmp_path, samples=6)
    measure(generator, tmp_path, seed=2)
    assert len(made) == 4


def test_real_photos_that_are_not_there_are_found_first(generator, tmp_path):
    with pytest.raises(InputError, match="none: no such file of features"):
        measure(generator, tmp_path, tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_generator_that_came_out_broken_is_one_line(generator, tmp_path):
    measured = measure(generator, tmp_path)
    with pytest.raises(
        UnlearningError, match="FID, forgetful: the generator's pictures"
    ):
        measured(changed(generator, np.nan))


def test_a_tensorflow_dataset_is_read_without_tensorflow(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9, 9, 3), np.uint8) for _ in range(4)]
    asked = []

    def data_source(name, split):
        if name != "faces/9":
            raise ValueError("Builder not found\nmore\nlines")
        asked.append(split)
        return [{"image": image, "label": 3} for image in images]

    monkeypatch.setattr(tfds, "data_source", data_source)
    features = fid_statistics.Features(tiny.inception())
    found = fid.fid_sources.of_dataset(features, "faces/9:test")
    wanted = fid_statistics.Statistics.of(
        features(np.stack(images) / np.float32(127.5) - 1)
    )
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-5, atol=1e-6)
    fid.fid_sources.of_dataset(features, "faces/9")
    assert asked == ["test", "train"]
    with pytest.raises(InputError, match=r"tfds:no: can't be read .*Builder not found"):
        fid.fid_sources.of_dataset(features, "no")


def test_what_the_measures_depend_on_is_said(generator, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i * 80, 0, 0)).save(photos / f"{i}.png")
    first = measure(generator, tmp_path / "cache", photos).made_of
    assert measure(generator, tmp_path / "cache", photos).made_of == first
    Image.new("RGB", (9, 9), "white").save(photos / "0.png")
    assert measure(generator, tmp_path / "cache", photos).made_of != first
    assert measure(generator, tmp_path / "cache").made_of != first


def test_a_cache_that_cannot_be_written_is_found_before_the_work(generator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"nothing can be kept there.*config\.cache"):
        measure(generator, tmp_path / "file" / "cache")
