"""A tiny IR in the published format: an XML graph plus a file of constants."""

import shutil
import xml.etree.ElementTree as ET
import zipfile
from hashlib import sha256

import numpy as np
import pytest
from tiny import jitted

from convert import __main__ as cli
from convert import mobilestylegan
from convert.mobilestylegan import MOBILESTYLEGAN, read
from convert.rules import MEAN_SAMPLES, ConversionError, convert
from guide_jax.models.generator import z_of_seed
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network, read_about

D = 6  # w_dim
CHANNELS = (8, 8, 4)  # at 4, 8 and 16 pixels


class Graph:
    """Writes constants and other layers like OpenVINO's model optimiser."""

    def __init__(self, name, seed):
        self.name, self.rng = name, np.random.default_rng(seed)
        self.net = ET.Element("net", name=name, version="10")
        self.layers = ET.SubElement(self.net, "layers")
        self.blob, self.arrays = b"", {}
        self.layer("var", "Parameter", shape=f"1, {D}", element_type="f32")

    def layer(self, name, kind, **attributes):
        number = str(len(self.layers))
        attributes = {key: str(value) for key, value in attributes.items()}
        layer = ET.SubElement(self.layers, "layer", id=number, name=name, type=kind)
        if attributes or kind != "Result":
            ET.SubElement(layer, "data", attributes)

    def const(self, name, *shape, dtype="f32", value=None):
        """Adds a constant, random by default; the blob gets gaps."""
        drawn = self.rng.standard_normal(shape)
        array = np.asarray(drawn if value is None else np.broadcast_to(value, shape))
        array = array.astype({"f32": np.float32, "i64": np.int64}[dtype])
        self.blob += b"\x7f" * (len(self.blob) % 8)
        self.layer(name, "Const", element_type=dtype, shape=", ".join(map(str, shape)),
                   offset=len(self.blob), size=array.nbytes)  # fmt: skip
        self.blob += array.tobytes()
        self.arrays[name] = array

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(self.net).write(folder / f"{self.name}.xml")
        (folder / f"{self.name}.bin").write_bytes(self.blob)


def mapping_graph():
    graph = Graph("MappingNetwork", 0)
    graph.const("Constant_5", 1, 1, value=1)
    graph.const("171", 1, 1, value=2)
    graph.const("ReduceMean_1/axis", 1, dtype="i64")
    graph.const("Constant_2", 1, 1, value=1e-8)
    graph.const("126", 1, 1, value=0.5)
    graph.const("Div_6/reciprocal__input_port_1/value1708", 1, 1, value=-1)
    for i in range(3):
        graph.const(f"{173 + 4 * i}", D, D)
        graph.const(f"{174 + 4 * i}", D)
        graph.layer(f"MatMul_{8 + 11 * i}", "MatMul", transpose_b="true")
        graph.const(f"LeakyRelu_{16 + 11 * i}/weights30", 1, value=0.2)
        graph.const(f"Constant_{17 + 11 * i}", 1, 1, value=2**0.5)
    graph.layer("style/sink_port_0", "Result")
    return graph


def modulation(graph, layer, channels):
    graph.const(f"{layer}.modulation.weight", channels, D)
    graph.const(f"{layer}.modulation.bias", 1, channels)
    if not layer.endswith(".up"):
        taps = 1 if "to_img" in layer else 9
        graph.const(f"Constant_{layer}", 1, 1, 1, 1, value=(taps * channels) ** -0.5)


def conv(graph, layer, number, shape, size):
    graph.const(f"Mul_{number}_copy", *shape)
    graph.const(f"{number + 1000}", 1, 1, size, size)
    graph.const(f"{layer}.bias", 1, shape[0], 1, 1)
    graph.const(f"LeakyRelu_{number}/weights28", 1, value=0.2)


def haar(graph, number, channels):
    sums, differences = np.array([0.5, 0.5]) ** 0.5, np.array([1, -1]) * 0.5**0.5
    for i, columns in enumerate((sums, differences)):
        name, rows = number + 2000 + 10 * i, (channels, 1, 1, 2, 1)
        graph.const(f"{name}", *rows, value=sums[:, None])
        graph.const(f"{name + 1}", *rows, value=differences[:, None])
        graph.const(f"{name + 2}", channels, 1, 1, 1, 2, value=columns)


def synthesis_graph():
    """Adds the styles, from the last level to the first, then the convolutions."""
    graph = Graph("SynthesisNetwork", 1)
    last = len(CHANNELS) - 2
    modulation(graph, f"m.layers.{last}.to_img.conv", CHANNELS[-1])
    for i in reversed(range(last + 1)):
        modulation(graph, f"m.layers.{i}.conv2.conv", CHANNELS[i + 1])
        modulation(graph, f"m.layers.{i}.conv1.conv", CHANNELS[i] // 4)
        modulation(graph, f"m.layers.{i}.up", CHANNELS[i])
        graph.const(f"shape_{i}", 4, dtype="i64")
    modulation(graph, "m.conv1.conv", CHANNELS[0])
    graph.const("m.input.input", 1, CHANNELS[0], 4, 4)
    conv(graph, "m.conv1", 39, (CHANNELS[0], CHANNELS[0], 3, 3), 4)
    for i in range(last + 1):
        inputs, outputs, size = CHANNELS[i] // 4, CHANNELS[i + 1], 8 * 2**i
        haar(graph, 100 * i, inputs)
        for k, width in ((1, inputs), (2, outputs)):
            layer = f"m.layers.{i}.conv{k}"
            graph.const(f"{layer}.conv.weight_dw", width, 1, 1, 3, 3)
            graph.layer("Conv", "GroupConvolution")
            conv(graph, layer, 100 * (i + 1) + 30 * k, (outputs, width, 1, 1), size)
    graph.const(f"m.layers.{last}.to_img.conv.weight", 12, CHANNELS[-1], 1, 1)
    graph.const(f"m.layers.{last}.to_img.bias", 1, 12, 1, 1)
    haar(graph, 700, 3)
    graph.layer("img/sink_port_0", "Result")
    return graph


@pytest.fixture(scope="module")
def ir(tmp_path_factory):
    """Returns the unpacked package's folder, its wheel, and both graphs' arrays."""
    root = tmp_path_factory.mktemp("ir")
    graphs = mapping_graph(), synthesis_graph()
    for graph in graphs:
        graph.save(root / "rf" / "random_face" / "data")
    shutil.make_archive(str(root / "random_face-1"), "zip", root / "rf")
    wheel = (root / "random_face-1.zip").rename(root / "random_face-1.whl")
    return root / "rf", wheel, *(graph.arrays for graph in graphs)


@pytest.mark.parametrize("form", ["folder", "wheel"])
def test_every_leaf_equals_its_constant_in_our_layout(ir, form):
    folder, wheel, _, s = ir
    network = convert(read(folder if form == "folder" else wheel), MOBILESTYLEGAN)
    config = {"channels": CHANNELS, "z_dim": D, "w_dim": D, "mapping_layers": 3}
    assert network.config == config
    assert (network.resolution, network.num_ws) == (32, 8)

    def style(layer):
        name = f"m.{layer}.modulation"
        return {"weight": s[f"{name}.weight"].T, "bias": s[f"{name}.bias"][0]}

    def level(i, k, number):
        name = f"m.layers.{i}.conv{k}"
        return {
            "depthwise": s[f"{name}.conv.weight_dw"][:, 0, 0].transpose(1, 2, 0),
            "pointwise": s[f"Mul_{number}_copy"][:, :, 0, 0].T,
            "noise_const": s[f"{number + 1000}"][0, 0],
            "bias": s[f"{name}.bias"].ravel(),
            **{f"affine.{k}": x for k, x in style(f"layers.{i}.conv{k}.conv").items()},
        }

    wanted = {
        "b4": {
            "const": s["m.input.input"][0].transpose(1, 2, 0),
            "weight": s["Mul_39_copy"].transpose(2, 3, 1, 0),
            "noise_const": s["1039"][0, 0],
            "bias": s["m.conv1.bias"].ravel(),
            **{f"affine.{k}": x for k, x in style("conv1.conv").items()},
        },
        "b8.up": style("layers.0.up"),
        "b8.conv0": level(0, 1, 130),
        "b8.conv1": level(0, 2, 160),
        "b16.up": style("layers.1.up"),
        "b16.conv0": level(1, 1, 230),
        "b16.conv1": level(1, 2, 260),
        "head": {
            "weight": s["m.layers.1.to_img.conv.weight"][:, :, 0, 0].T,
            "bias": s["m.layers.1.to_img.bias"].ravel(),
            **{f"affine.{k}": x for k, x in style("layers.1.to_img.conv").items()},
        },
    }
    leaves = flat_leaves(network)
    flat = {
        f"synthesis.{a}.{b}": x for a, part in wanted.items() for b, x in part.items()
    }
    assert flat.keys() == {name for name in leaves if name.startswith("synthesis.")}
    for name, array in flat.items():
        np.testing.assert_array_equal(leaves[name], array, err_msg=name)


def mapped(z, m):
    """Computes the IR's mapping graph, whose weights include all gains."""
    x = z / np.sqrt(np.mean(z**2, axis=1, keepdims=True) + 1e-8)
    for i in range(3):
        x = x @ m[f"{173 + 4 * i}"].T + m[f"{174 + 4 * i}"]
        x = np.where(x < 0, 0.2 * x, x) * np.sqrt(2)
    return x


def test_mapping_network_matches_the_graph(ir):
    folder, _, m, _ = ir
    mapping = convert(read(folder), MOBILESTYLEGAN).mapping
    z = z_of_seed(0, D)
    w = jitted(mapping, lambda mapping, z: mapping(z), z)
    np.testing.assert_allclose(w[:, 0], mapped(z, m), rtol=1e-5, atol=1e-6)
    samples = np.random.default_rng(0).standard_normal((MEAN_SAMPLES, D))
    wanted = mapped(samples, m).mean(0)
    np.testing.assert_allclose(mapping.w_avg[...], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["folder", "wheel"])
def test_command_line_accepts_the_wheel_and_its_folder(ir, tmp_path, capsys, form):
    path = ir[0] if form == "folder" else ir[1]
    assert cli.main([str(path), "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert MOBILESTYLEGAN.title in out
    assert load_network(tmp_path / "random_face").num_ws == 8
    sources = read_about(tmp_path / "random_face")["sources"]
    read_files = [path] if form == "wheel" else [
        path / "random_face" / "data" / f"{name}{suffix}"
        for name in mobilestylegan.NETWORKS
        for suffix in (".xml", ".bin")
    ]  # fmt: skip
    assert sources == [
        {"file": file.name, "sha256": sha256(file.read_bytes()).hexdigest()}
        for file in read_files
    ]


@pytest.mark.parametrize("lost", ["SynthesisNetwork.bin", "MappingNetwork.xml"])
@pytest.mark.parametrize("form", ["folder", "wheel"])
def test_missing_graph_files_are_named(ir, tmp_path, capsys, lost, form):
    path = tmp_path / "rf"
    shutil.copytree(ir[0], path)
    (path / "random_face" / "data" / lost).unlink()
    if form == "wheel":
        made = shutil.make_archive(str(tmp_path / "x"), "zip", path)
        path = (tmp_path / made).rename(tmp_path / "x.whl")
    name = lost.split(".")[0]
    with pytest.raises(
        ConversionError, match=rf"{path}: {name}\.xml or {name}\.bin is missing"
    ):
        read(path)
    assert cli.main([str(path), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: {name}.xml or ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["SynthesisNetwork.bin", "SynthesisNetwork.xml"])
def test_truncated_files_give_a_one_line_error(ir, tmp_path, capsys, part):
    path = tmp_path / "rf"
    shutil.copytree(ir[0], path)
    file = path / "random_face" / "data" / part
    file.write_bytes(file.read_bytes()[:500])
    assert cli.main([str(path), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert not (tmp_path / "out").exists()


def test_unknown_tensor_is_named(ir):
    state = read(ir[0]) | {"synthesis.m.surplus": np.ones(3)}
    with pytest.raises(ConversionError, match=r"unknown tensor 'synthesis.m.surplus'"):
        convert(state, MOBILESTYLEGAN)


def constants(graph):
    """Returns a graph's (name, array) pairs in order, without integers."""
    return [(k, x) for k, x in graph.arrays.items() if x.dtype == np.float32]


def changed(graph, name, array):
    """Returns the constants with one replaced, or removed if `array` is None."""
    pairs = [(k, array if k == name else x) for k, x in constants(graph)]
    assert name in dict(pairs)
    return [(k, x) for k, x in pairs if x is not None]


def numbers(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("Constant_2", numbers(1e-5)),
        ("171", numbers(3)),
        ("LeakyRelu_27/weights30", numbers(0.01)),
        ("Constant_28", numbers(1)),
        ("Constant_28", numbers(2**0.5, 2**0.5)),
        ("177", np.ones((D, D - 1), np.float32)),
        ("177", np.ones(D, np.float32)),
        ("178", np.ones(D + 1, np.float32)),
    ],
)
def test_unexpected_constants_in_the_mapping_graph_are_named(name, array):
    with pytest.raises(ConversionError, match=f"constant '{name}' "):
        mobilestylegan._mapping(changed(mapping_graph(), name, array))


def test_wrong_number_of_constants_in_the_mapping_graph_is_refused():
    pairs = constants(mapping_graph())
    for wrong in (pairs[:-1], [*pairs, ("Constant_99", numbers(1))], pairs[:3]):
        with pytest.raises(ConversionError, match="unexpected constants in the map"):
            mobilestylegan._mapping(wrong)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("LeakyRelu_130/weights28", numbers(0.1)),
        ("LeakyRelu_130/weights28", numbers(0.2, 0.2)),
        ("Constant_m.conv1.conv", numbers(0.1)),
        ("Constant_m.layers.1.to_img.conv", numbers((9 * CHANNELS[-1]) ** -0.5)),
        ("2000", np.full((2, 1, 1, 2, 1), 0.5, np.float32)),
        ("2002", np.full((2, 1, 1, 2, 1), 0.5**0.5, np.float32)),
        ("2011", np.full((2, 1, 1, 2, 1), 0.5**0.5, np.float32)),
    ],
)
def test_unexpected_constants_in_the_synthesis_graph_are_named(name, array):
    with pytest.raises(ConversionError, match=f"constant '{name}' .* is not the "):
        mobilestylegan._synthesis(changed(synthesis_graph(), name, array))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LeakyRelu_130/weights28", r"'m\.layers\.0\.conv2\..*' .* is not the leaky"),
        ("Constant_m.conv1.conv", r"'m\.input\.input' .* is not the scale of m\.conv1"),
        ("2710", "'2711' .* is not the Haar filter"),
        ("2712", "found 17 Haar filters, expected 18"),
    ],
)
def test_missing_constants_in_the_synthesis_graph_are_named(name, message):
    with pytest.raises(ConversionError, match=message):
        mobilestylegan._synthesis(changed(synthesis_graph(), name, None))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("Constant_9", (1,), r"unknown constant 'Constant_9' \[1\]"),
        ("LeakyRelu_9/weights9", (1,), "unknown constant 'LeakyRelu_9/weights9'"),
        ("9", (1, 4), r"unknown constant '9' \[1, 4\]"),
        ("Mul_9_copy", (1, 4), "truncated at Mul_9_copy"),
    ],
)
def test_unknown_constants_are_named(name, shape, message):
    pairs = [*constants(synthesis_graph()), (name, np.ones(shape, np.float32))]
    with pytest.raises(ConversionError, match=message):
        mobilestylegan._synthesis(pairs)


def test_second_weight_before_a_bias_is_refused():
    pairs = constants(synthesis_graph())
    at = [name for name, _ in pairs].index("Mul_39_copy")
    with pytest.raises(ConversionError, match="unknown constant 'Mul_39_copy'"):
        mobilestylegan._synthesis([*pairs[: at + 1], *pairs[at:]])


@pytest.mark.parametrize("kind", ["f64", "bf16"])
def test_constants_of_an_unsupported_type_are_named(kind):
    graph = mapping_graph()
    graph.layer("odd", "Const", element_type=kind, shape="1", offset=0, size=8)
    xml = ET.tostring(graph.net)
    with pytest.raises(ConversionError, match=f"constant 'odd' has unsupp.*{kind}"):
        mobilestylegan._constants(xml, graph.blob)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("synthesis.m.input.input", (8,)),
        ("synthesis.m.layers.0.conv2.weight", ()),
        ("synthesis.m.layers.0.conv1.weight", (8, 2)),
        ("synthesis.m.layers.0.conv1.conv.weight_dw", (2, 9)),
        ("synthesis.m.layers.1.to_img.conv.weight", (12,)),
        ("mapping.0.weight", (D,)),
        ("mapping.1.weight", (D,)),
        ("mapping.w_avg", ()),
    ],
)
def test_tensors_of_the_wrong_shape_are_named(ir, key, shape):
    state = read(ir[0]) | {key: np.ones(shape, np.float32)}
    with pytest.raises(ConversionError, match=f"'{key}' has shape"):
        convert(state, MOBILESTYLEGAN)


def test_other_wheels_and_folders_are_refused(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    (tmp_path / "empty").mkdir()
    files = [str(tmp_path / name) for name in ("other.whl", "empty")]
    assert cli.main([*files, "--out", str(tmp_path / "out")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {files[0]}: a zip file without PyTorch's")
    assert second.startswith(f"error: {files[1]}: MappingNetwork.xml or ")
