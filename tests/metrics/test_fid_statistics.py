"""FID's statistics and distance, and where they come from (fid_sources.py)."""

import numpy as np
import pytest
import scipy.linalg
import tiny
from PIL import Image

from guide_jax.errors import InputError
from guide_jax.metrics import fid_sources, fid_statistics
from guide_jax.metrics.fid_statistics import Accumulator, Features, Statistics


def random_features(count, features, seed=0, shift=0.0):
    """Returns correlated features [N, F], float64."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((features, features))
    return rng.standard_normal((count, features)) @ mix + shift


def assert_same(found: Statistics, wanted: Statistics, rtol=1e-12):
    assert found.count == wanted.count
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=rtol)
    atol = rtol * np.abs(wanted.covariance).max()
    np.testing.assert_allclose(found.covariance, wanted.covariance, atol=atol)


# Statistics ---------------------------------------------------------------------------


def test_statistics_are_mean_and_covariance():
    features = random_features(40, 7)
    found = Statistics.of(features)
    wanted = Statistics(features.mean(0), np.cov(features, rowvar=False), 40)
    assert_same(found, wanted)
    assert found.covariance.dtype == np.float64


@pytest.mark.parametrize("sizes", [(50,), (1,) * 50, (16, 16, 16, 2), (3, 47)])
def test_batches_give_the_statistics_of_all_at_once(sizes):
    # Far from zero, sums of squares would lose 12 of 16 digits.
    features = random_features(50, 7, shift=1e6)
    accumulator = Accumulator()
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        accumulator.add(part)
    wanted = Statistics(features.mean(0), np.cov(features, rowvar=False), 50)
    assert_same(accumulator.statistics(), wanted, rtol=1e-9)


def test_accumulators_merge():
    features = random_features(50, 7, shift=3)
    parts = np.split(features, [0, 20, 21])
    merged = Accumulator()
    for part in parts:
        other = Accumulator()
        if len(part):
            other.add(part)
        merged.merge(other)
    assert_same(merged.statistics(), Statistics.of(features))


def test_statistics_do_not_change_when_more_is_added():
    accumulator = Accumulator()
    accumulator.add(random_features(9, 4))
    first = accumulator.statistics()
    accumulator.add(random_features(9, 4, seed=1))
    assert_same(first, Statistics.of(random_features(9, 4)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(3), r"shape \[3\]"),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        (np.full((2, 3), np.nan), "not finite"),
        (np.zeros((2, 4)), "expected 3 features, got 4"),
    ],
)
def test_invalid_features_are_rejected(features, message):
    accumulator = Accumulator()
    accumulator.add(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=message):
        accumulator.add(features)
    assert accumulator.count == 1


def test_one_image_has_no_statistics():
    with pytest.raises(ValueError, match="at least two images, not 1"):
        Statistics.of(np.zeros((1, 3)))


# The distance -------------------------------------------------------------------------


def test_distance_of_gaussians_with_the_same_axes():
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    a, b = np.array([4.0, 1, 0.25, 9, 1e-4]), np.array([1.0, 1, 4, 0, 1e-6])
    mean = np.array([1.0, -2, 0, 0, 0.5])
    first = Statistics(np.zeros(5), axes * a @ axes.T, 100)
    second = Statistics(mean, axes * b @ axes.T, 100)
    wanted = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert fid_statistics.distance(first, second) == pytest.approx(wanted, rel=1e-12)
    assert fid_statistics.distance(second, first) == pytest.approx(wanted, rel=1e-12)


def test_distance_equals_the_published_formula():
    a, b = (Statistics.of(random_features(300, 40, seed)) for seed in (0, 1))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    wanted = np.sum((a.mean - b.mean) ** 2)
    wanted += np.trace(a.covariance + b.covariance - 2 * root.real)
    assert fid_statistics.distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_distance_with_fewer_images_than_features():
    x, y = random_features(20, 200), random_features(30, 200, seed=1, shift=0.5)
    a, b = Statistics.of(x), Statistics.of(y)
    # The same trace from the centred features, without a covariance.
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    wanted = ((a.mean - b.mean) ** 2).sum() + (x**2).sum() + (y**2).sum()
    wanted -= 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert fid_statistics.distance(a, b) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("count", [2, 20, 400])
def test_distance_to_itself_is_zero(count):
    a = Statistics.of(random_features(count, 100))
    assert 0 <= fid_statistics.distance(a, a) < 1e-12 * np.trace(a.covariance)


def test_distance_without_any_spread():
    a, b = (Statistics.of(np.full((3, 4), value)) for value in (0.0, 2.0))
    assert fid_statistics.distance(a, b) == 16


def test_distance_of_different_feature_counts_is_rejected():
    a, b = Statistics.of(random_features(5, 3)), Statistics.of(random_features(5, 4))
    with pytest.raises(ValueError, match="3 with 4 features"):
        fid_statistics.distance(a, b)


# The network's features ---------------------------------------------------------------


def random_images(count, size=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def to_float(pixels):
    return pixels.astype(np.float32) / 127.5 - 1


def test_features_do_not_depend_on_the_batches():
    network, images = tiny.inception(), to_float(random_images(7))
    wanted = Features(network)(images)
    assert wanted.shape == (7, 6)
    assert wanted.std(0).min() > 1e-3
    np.testing.assert_allclose(Features(network, 3)(images), wanted, atol=1e-6)
    found = Features(network, 3).of_images(np.split(images, [1, 5]), total=7)
    assert_same(found, Statistics.of(wanted), rtol=1e-5)


def test_features_are_the_outputs_of_the_network():
    network, images = tiny.inception(), to_float(random_images(2, 299))
    found = Features(network)(images)
    wanted = tiny.jitted(network, lambda network, x: network(x), images)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_images_are_rounded_to_256_levels():
    pixels = random_images(3, 299)
    shifted = to_float(pixels) + np.random.default_rng(1).uniform(-0.49, 0.49) / 127.5
    shifted[pixels == 255] = 1.3  # beyond white
    np.testing.assert_allclose(
        fid_statistics.prepare(shifted), to_float(pixels), atol=1e-6
    )


def test_progress_is_shown(capsys):
    features = Features(tiny.inception(), 2)
    features.of_images([to_float(random_images(3))], total=3, label="faces")
    err = capsys.readouterr().err
    assert "faces: 100%" in err
    assert "3/3" in err


# Published files ----------------------------------------------------------------------


def test_feature_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fid_sources, "ROWS", 20)
    features = random_features(50, 6).astype(np.float32)
    np.save(tmp_path / "real.npy", features)
    found = fid_sources.read_statistics(tmp_path / "real.npy", 6)
    assert_same(found, Statistics.of(features))


def test_statistics_files_are_read(tmp_path):
    wanted = Statistics.of(random_features(50, 6))
    path = tmp_path / "real.npz"
    np.savez(path, mu=wanted.mean, sigma=wanted.covariance)
    assert_same(fid_sources.read_statistics(path, 6), wanted._replace(count=0))


def write_truncated(file):
    np.save(file, random_features(50, 6))
    file.truncate(file.tell() - 100)


SQUARE = np.ones((6, 6))
INVALID = {
    "text": lambda file: file.write(b"<!DOCTYPE html>"),
    "empty": lambda file: None,
    "pickle": lambda file: np.save(file, np.array([{}], object), allow_pickle=True),
    "cut": write_truncated,
    "whole numbers": lambda file: np.save(file, np.ones((9, 6), int)),
    "one axis": lambda file: np.save(file, np.ones(6)),
    "one image": lambda file: np.save(file, np.ones((1, 6))),
    "not finite": lambda file: np.save(file, np.full((9, 6), np.inf)),
    "other features": lambda file: np.save(file, np.ones((9, 7))),
    "no sigma": lambda file: np.savez(file, mu=np.ones(6)),
    "misshapen": lambda file: np.savez(file, mu=np.ones(6), sigma=np.ones((6, 5))),
    "no numbers": lambda file: np.savez(file, mu=np.array(["a"] * 6), sigma=SQUARE),
    "infinite": lambda file: np.savez(file, mu=np.full(6, np.inf), sigma=SQUARE),
    "not symmetric": lambda file: np.savez(file, mu=np.ones(6), sigma=np.triu(SQUARE)),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_files_give_a_one_line_error(tmp_path, name):
    path = tmp_path / "real.npy"
    with path.open("wb") as file:
        INVALID[name](file)
    with pytest.raises(InputError) as caught:
        fid_sources.read_statistics(path, 6)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match="no such feature file"):
        fid_sources.read_statistics(tmp_path / "none.npy")


# Folders ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of three images and a sub-folder of two of other sizes."""
    folder = tmp_path / "faces"
    (folder / "more").mkdir(parents=True)
    for i, picture in enumerate(random_images(3)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    for i, picture in enumerate(random_images(2, 310, seed=1)):
        Image.fromarray(picture[:, i:]).save(folder / "more" / f"{i}.png")
    (folder / ".hidden").write_text("no image")
    return folder


def read_by_pillow(folder):
    images = [Image.open(path) for path in sorted(folder.rglob("*.png"))]
    return [to_float(np.asarray(image))[None] for image in images]


def test_a_folder_gives_the_statistics_of_all_its_images(folder):
    features = Features(tiny.inception(), 4)
    found, skipped = fid_sources.of_folder(features, folder)
    assert skipped == []
    assert found.count == 5
    wanted = features.of_images(read_by_pillow(folder))
    assert_same(found, wanted, rtol=1e-4)


def test_image_files_are_resized_as_the_network_would(folder):
    for path, image in zip(
        fid_sources.image_files(folder), read_by_pillow(folder), strict=True
    ):
        found = fid_sources.read_input(path)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, fid_statistics.prepare(image), atol=1e-5)


def test_bad_images_are_left_out_and_listed(folder, caplog):
    features = Features(tiny.inception(), 4)
    wanted, _ = fid_sources.of_folder(features, folder)
    (folder / "list.txt").write_text("no image")
    png = (folder / "0.png").read_bytes()
    (folder / "more" / "0a.png").write_bytes(png[: len(png) // 2])
    with caplog.at_level("WARNING", "absl"):
        found, skipped = fid_sources.of_folder(features, folder)
    assert_same(found, wanted)
    assert len(skipped) == 2
    assert skipped[0].startswith(f"{folder / 'list.txt'}: not a readable image")
    assert skipped[1].startswith(f"{folder / 'more' / '0a.png'}: damaged image")
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: 2 of 7 files are left out: ")


def test_folders_without_enough_images_give_a_one_line_error(tmp_path):
    features = Features(tiny.inception())
    with pytest.raises(InputError, match="no such folder"):
        fid_sources.of_folder(features, tmp_path / "none")
    with pytest.raises(InputError, match="no images in it"):
        fid_sources.of_folder(features, tmp_path)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"not 0 \(1 of 1 files .*a\.png"):
        fid_sources.of_folder(features, tmp_path)
    Image.fromarray(random_images(1)[0]).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"not 1 \(1 of 2 files"):
        fid_sources.of_folder(features, tmp_path)


# The cache ----------------------------------------------------------------------------


def counting(statistics):
    calls = []
    return calls, lambda: calls.append(1) or statistics


def test_statistics_are_computed_once(tmp_path):
    wanted = Statistics.of(random_features(9, 4))
    calls, compute = counting(wanted)
    for _ in range(2):
        found = fid_sources.cached(tmp_path / "cache", "a key / of any form", compute)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(calls) == 1
    assert isinstance(found.count, int)
    other = Statistics.of(random_features(9, 4, seed=1))
    found = fid_sources.cached(tmp_path / "cache", "another key", lambda: other)
    np.testing.assert_array_equal(found.mean, other.mean)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"] * 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def flip_a_bit(path):
    damaged = bytearray(path.read_bytes())
    damaged[400] ^= 1  # inside the first array's data
    path.write_bytes(damaged)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_cache_is_computed_again(tmp_path, damage, caplog):
    wanted = Statistics.of(random_features(99, 40))
    calls, compute = counting(wanted)
    fid_sources.cached(tmp_path, "key", compute)
    (path,) = tmp_path.iterdir()
    damage(path)
    for _ in range(2):
        assert_same(fid_sources.cached(tmp_path, "key", compute), wanted)
    assert len(calls) == 2
    assert f"{path}: damaged" in caplog.text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        fid_sources.cached(
            tmp_path, "key", lambda: Statistics.of(random_features(9, 4))
        )
    assert list(tmp_path.iterdir()) == []


def test_hash_of_files_changes_with_names_and_contents(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    first = fid_sources.hash_files([a, b])
    assert fid_sources.hash_files([str(a), b]) == first
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (a, b):
        (moved / path.name).write_bytes(path.read_bytes())
    assert fid_sources.hash_files([moved / "a", moved / "b"]) == first
    hashes = {first, fid_sources.hash_files([a]), fid_sources.hash_files([b, a])}
    b.write_text("3")
    hashes.add(fid_sources.hash_files([a, b]))
    b.rename(tmp_path / "c")
    hashes.add(fid_sources.hash_files([a, tmp_path / "c"]))
    assert len(hashes) == 5


def test_statistics_of_other_resizers_are_refused(tmp_path, caplog):
    arrays = {"mu": np.zeros(6), "sigma": np.eye(6)}
    for name in ("ffhq_clean_trainval70k_1024", "ffhq_legacy_tensorflow_train_256"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(InputError, match="resized in another way"):
            fid_sources.read_statistics(tmp_path / f"{name}.npz", 6)
    np.savez(tmp_path / "ffhq.npz", **arrays)
    fid_sources.read_statistics(tmp_path / "ffhq.npz", 6)
    assert "does not say how the photos were resized" in caplog.text
