"""Compares MTCNN with facenet-pytorch's values (data/record_mtcnn.py); its files."""

import functools
import os
import zipfile
from pathlib import Path

import checkpoint_files
import jax.numpy as jnp
import mtcnn_rule as rule
import numpy as np
import pytest
import tiny
from golden_data import nchw, nhwc

from convert import __main__ as cli
from convert import mtcnn as families
from convert.rules import ConversionError, convert
from convert.torch_file import read
from guide_jax.faces import detect as detection
from guide_jax.faces import photos
from guide_jax.faces.align import cut, ffhq_quad, is_aligned
from guide_jax.models.generator import z_of_seed
from guide_jax.models.mtcnn import INPUT_SCALE, MTCNN, max_pool, proposals
from guide_jax.models.network import flat_leaves
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network, save_network

WHEEL = "GUIDE_FACENET_PYTORCH_WHEEL"


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "data" / "mtcnn.npz") as npz:
        return dict(npz)


def merged(state_of=rule.weights):
    """Returns the three files as one state dict."""
    return {
        f"{net}.{key}": array
        for net in rule.SHAPES
        for key, array in state_of(net).items()
    }


@functools.cache
def network():
    return convert(merged(), families.FACENET)


def insightface(net):
    """Returns a file's state dict in InsightFace_Pytorch's layout."""
    state = {}
    for key, array in rule.weights(net).items():
        if array.shape[1:] in ((576,), (1152,)):  # [W, H, C] -> [C, W, H]
            whc = array.reshape(len(array), 3, 3, -1)
            array = whc.transpose(0, 3, 1, 2).reshape(array.shape)
        key = key.replace("dense", "conv")
        state[key if "_" in key else f"features.{key}"] = array
    return state


def scaled(crops):
    """Converts published crops [N, C, H, W], which are scaled, to our input."""
    return nhwc(crops) / np.float32(INPUT_SCALE)


def test_golden_mtcnn_pnet(recorded):
    crops = scaled(rule.crops()[:, :, :47, :42])
    scores, boxes = tiny.jitted(network().pnet, lambda net, x: net(x), crops)
    np.testing.assert_allclose(scores, recorded["pnet.scores"], atol=1e-5)
    np.testing.assert_allclose(nchw(boxes), recorded["pnet.boxes"], atol=1e-5)


def test_golden_mtcnn_pnet_in_a_padded_picture(recorded):
    padded = np.full((3, 64, 48, 3), 0.7, np.float32)
    padded[:, :47, :42] = scaled(rule.crops()[:, :, :47, :42])
    extent = jnp.array([47, 42])
    scores, boxes = tiny.jitted(network().pnet, lambda net, *x: net(*x), padded, extent)
    assert np.isfinite(boxes).all()
    part = slice(None), slice(proposals(47)), slice(proposals(42))
    np.testing.assert_allclose(scores[part], recorded["pnet.scores"], atol=1e-5)
    np.testing.assert_allclose(nchw(boxes[part]), recorded["pnet.boxes"], atol=1e-5)


def test_golden_mtcnn_rnet(recorded):
    crops = scaled(rule.crops()[:, :, :24, :24])
    scores, boxes = tiny.jitted(network().rnet, lambda net, x: net(x), crops)
    np.testing.assert_allclose(scores, recorded["rnet.scores"], atol=1e-5)
    np.testing.assert_allclose(boxes, recorded["rnet.boxes"], atol=1e-5)


def test_golden_mtcnn_onet(recorded):
    crops = scaled(rule.crops())
    outputs = tiny.jitted(network().onet, lambda net, x: net(x), crops)
    scores, boxes, points = map(np.asarray, outputs)
    np.testing.assert_allclose(scores, recorded["onet.scores"], atol=1e-5)
    np.testing.assert_allclose(boxes, recorded["onet.boxes"], atol=1e-5)
    theirs = recorded["onet.points"]  # five x, then five y
    np.testing.assert_allclose(points[..., 0], theirs[:, :5], atol=1e-5)
    np.testing.assert_allclose(points[..., 1], theirs[:, 5:], atol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_golden_mtcnn_detection(recorded, kind):
    image = rule.picture()
    if kind == "float":
        image = image.astype(np.float32) / 127.5 - 1
    faces = detection.detect(network(), image, **rule.DETECTION)
    faces.sort(key=lambda face: -face.score)
    assert len(faces) == len(recorded["boxes"]) > 5
    for i, face in enumerate(faces):
        np.testing.assert_allclose(face.score, recorded["scores"][i], atol=1e-5)
        np.testing.assert_allclose(face.box, recorded["boxes"][i], atol=1e-3)
        np.testing.assert_allclose(face.points, recorded["points"][i], atol=1e-3)


@pytest.mark.parametrize("side", range(12, 20))
def test_proposals_is_p_nets_output_side(side):
    image = np.zeros((1, side, 12, 3), np.float32)
    scores, _ = tiny.jitted(network().pnet, lambda net, x: net(x), image)
    assert scores.shape == (1, proposals(side), 1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("side", [6, 7])
def test_max_pools_last_window_extends_past_the_edge(size, side):
    x = np.random.default_rng(0).standard_normal((1, side, side, 2)) - 9
    count = -(-(side - size) // 2) + 1
    rows = [slice(2 * i, 2 * i + size) for i in range(count)]
    wanted = [[x[:, a, b].max((1, 2)) for b in rows] for a in rows]
    wanted = np.transpose(wanted, (2, 0, 1, 3)).astype(np.float32)
    np.testing.assert_allclose(max_pool(jnp.float32(x), size), wanted, rtol=1e-6)


def test_saving_and_loading_restores_the_network(tmp_path):
    save_network(tmp_path / "m.npz", network())
    loaded = load_network(tmp_path / "m.npz")
    assert isinstance(loaded, MTCNN)
    wanted = flat_leaves(network())
    assert len(wanted) == 50
    for path, leaf in flat_leaves(loaded).items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


# Files --------------------------------------------------------------------------------


def save_npy(folder):
    """Writes InsightFace_Pytorch's three files; returns their paths."""
    for net in rule.SHAPES:
        np.save(folder / f"{net}.npy", insightface(net))  # pickles a dict
    return [folder / f"{net}.npy" for net in ("onet", "pnet", "rnet")]


def save_pt(folder):
    """Writes facenet-pytorch's three files, in PyTorch's older format."""
    for net in rule.SHAPES:
        state = checkpoint_files.state_dict(rule.weights(net))
        checkpoint_files.write_legacy(folder / f"{net}.pt", state)
    return [folder / f"{net}.pt" for net in rule.SHAPES]


@pytest.mark.parametrize(
    ("save", "title"),
    [(save_npy, "InsightFace_Pytorch"), (save_pt, "facenet-pytorch")],
)
def test_either_set_of_files_gives_the_same_network(tmp_path, capsys, save, title):
    files = save(tmp_path)
    assert cli.main([*map(str, files), "--out", str(tmp_path / "w"), "--npz"]) == 0
    assert f"MTCNN face detector ({title})" in capsys.readouterr().out
    wanted = flat_leaves(network())
    leaves = flat_leaves(load_network(tmp_path / "w" / "mtcnn.npz"))
    assert leaves.keys() == wanted.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


def test_families_distinguish_the_file_sets():
    ours, theirs = merged(), merged(insightface)
    assert families.FACENET.recognises(ours)
    assert families.INSIGHTFACE.recognises(theirs)
    assert not families.FACENET.recognises(theirs)
    assert not families.INSIGHTFACE.recognises(ours)


def test_missing_files_are_reported_in_one_line(tmp_path, capsys):
    onet, pnet, _ = save_npy(tmp_path)
    assert cli.main([str(pnet), str(onet), "--out", str(tmp_path / "w")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(
        f"error: {pnet} + {onet}: this is InsightFace_Pytorch's pnet"
    )
    assert "but MTCNN also needs InsightFace_Pytorch's rnet.npy" in line
    assert line.endswith("give all 3 files together")


def test_a_net_given_twice_is_reported(tmp_path, capsys):
    files = save_npy(tmp_path)
    (tmp_path / "again.npy").write_bytes(files[1].read_bytes())
    files.append(tmp_path / "again.npy")
    assert cli.main([*map(str, files), "--out", str(tmp_path / "w"), "--npz"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {files[3]}: InsightFace_Pytorch's pnet.npy was already given as"
        f" {files[1]}; give only one of them"
    )


def test_unfitting_tensors_are_reported():
    state = merged()
    del state["rnet.dense5_1.bias"]
    state["onet.dense5.weight"] = np.ones((256, 1151), np.float32)
    state["pnet.conv5.weight"] = np.ones(1, np.float32)
    with pytest.raises(ConversionError) as caught:
        convert(state, families.FACENET)
    for part in (
        "no tensor for rnet.score.bias",
        "'onet.dense5.weight' has shape [256, 1151], onet.dense.kernel needs",
        "unknown tensor 'pnet.conv5.weight'",
    ):
        assert part in str(caught.value)


# facenet-pytorch's weights ------------------------------------------------------------


def test_published_network_finds_a_generated_face(tmp_path):
    if WHEEL not in os.environ:
        pytest.skip(f"{WHEEL} names no facenet-pytorch wheel")
    with zipfile.ZipFile(os.environ[WHEEL]) as wheel:
        names = [f"facenet_pytorch/data/{net}.pt" for net in rule.SHAPES]
        files = [wheel.extract(name, tmp_path) for name in names]
    for net, file in zip(rule.SHAPES, files, strict=True):
        theirs = {key: array.shape for key, array in read(file).items()}
        assert theirs == {key: x.shape for key, x in rule.weights(net).items()}
    assert cli.main([*files, "--out", str(tmp_path / "w"), "--npz"]) == 0
    mtcnn = load_network(tmp_path / "w" / "mtcnn.npz")

    generator = load_network(BUNDLE / "mobilestylegan_128.npz")
    z = z_of_seed(0, generator.z_dim)
    w = generator.mapping(z, psi=0.7)
    image = tiny.jitted(generator.synthesis, lambda net, w: net(w)[0], w)
    photo = photos.to_uint8(np.asarray(image[0]))
    (face,) = detection.detect(mtcnn, photo)
    assert face.score > 0.99
    assert is_aligned(
        photo, ffhq_quad(face.points)
    )  # like all of this generator's images

    # On a larger canvas, the face is found at its position and aligned back.
    canvas = np.full((200, 260, 3), 90, np.uint8)
    canvas[40:168, 100:228] = photo
    (moved,) = detection.detect(mtcnn, canvas)
    np.testing.assert_allclose(moved.points, face.points + np.array([100, 40]), atol=4)
    assert not is_aligned(canvas, ffhq_quad(moved.points))
    aligned = cut(canvas, ffhq_quad(moved.points), 128)
    assert np.abs(aligned - image[0]).mean() < 0.15
