import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from eg3d_golden import contents
from flax import nnx
from golden_data import load, nchw
from jax.test_util import check_grads

from convert import eg3d as family
from convert.rules import convert
from guide_jax.models import ops
from guide_jax.models.eg3d import cameras
from guide_jax.models.eg3d.planes import look_up
from guide_jax.models.eg3d.renderer import (
    Rendering,
    composite,
    importance_depths,
    interval_weights,
    render,
)
from guide_jax.models.eg3d.superresolution import SuperResolution
from guide_jax.models.generator import TRAINABLE

W_ATOL, PLANES_ATOL, RENDERED_ATOL = 5e-5, 2e-4, 4e-4
FRONT = ("cond", "cam_front")
TURNED = "cam_yaw0.2_pitch-0.2_pivot0.2"


@pytest.fixture(scope="module")
def small():
    """A small generator with nonzero noise and w_avg; must not be modified."""
    return tiny.eg3d()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def look_from(synthesis, w, camera, size=None):
    """Returns planes, features, depths and images, all in one pass."""
    planes, _ = synthesis.backbone(w)
    features, depths = synthesis.render(planes, camera=camera, size=size)
    image = synthesis.superresolution(features, w[:, -1])
    return planes, features, depths, image


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("eg3d_tiny", marks=pytest.mark.slow),
        pytest.param("eg3d_ffhq512_128", marks=pytest.mark.full),
    ],
)
def test_golden(name):
    golden = load(name)
    generator = convert(contents(golden), family.EG3D)
    mapping, synthesis = generator.mapping, generator.synthesis
    front, turned = cameras.look_at(), cameras.look_at(0.2, -0.2, pivot=(0, 0, 0.2))
    origins, directions = cameras.rays(turned, 128)
    z = golden.input("z")
    w = tiny.jitted(mapping, lambda m, z: m(z), z)
    run = nnx_jitted(synthesis, look_from)
    found = dict.fromkeys(FRONT, front) | {
        TURNED: turned,
        "ray_origins2": np.broadcast_to(origins[:, None], directions.shape),
        "ray_dirs2": directions,
        "ws": w,
        "ws_trunc": tiny.jitted(mapping, lambda m, z: m(z, psi=0.7, cutoff=14), z),
    }
    for suffix, camera in (("", front), ("2", turned)):
        planes, features, depths, image = run(w, camera)
        found |= {
            f"image{suffix}": nchw(image),
            f"image_raw{suffix}": nchw(features[..., :3]),
            f"image_depth{suffix}": np.asarray(depths)[:, None],
        }
        if not suffix:
            found["feature_image"] = nchw(features)
    found["planes"] = nchw(planes)
    points = golden.input("points")
    colours, densities = tiny.jitted(
        synthesis, lambda s, planes, x: s.query(planes, x), planes, points
    )
    found |= {"points.rgb": colours, "points.sigma": np.asarray(densities)[..., None]}
    if "image_nrr64" in golden.outputs:
        _, features, _, image = nnx_jitted(synthesis, lambda *x: look_from(*x, 64))(
            w, front
        )
        found |= {
            "image_nrr64": nchw(image),
            "image_raw_nrr64": nchw(features[..., :3]),
        }
    assert set(found) == set(golden.outputs)
    for output, array in found.items():
        limit = {"planes": PLANES_ATOL}.get(output, RENDERED_ATOL)
        if np.ndim(array) < 4:
            limit = W_ATOL
        golden.check(output, np.asarray(array), limit)


def nnx_jitted(network, function):
    """Returns a program for several calls, with the weights as its arguments."""
    graph, state = nnx.split(network)
    program = jax.jit(lambda state, *args: function(nnx.merge(graph, state), *args))
    return lambda *args: program(state, *args)


# Cameras ------------------------------------------------------------------------------


def test_the_front_camera_sees_the_origin_upright():
    camera = np.asarray(cameras.look_at())
    pose = camera[0, :16].reshape(4, 4)
    np.testing.assert_allclose(pose[:3, :3], np.diag([1, -1, -1]), atol=1e-6)
    np.testing.assert_allclose(pose[:3, 3], [0, 0, 2.7], atol=1e-6)
    origins, directions = cameras.rays(camera, 3)
    np.testing.assert_allclose(directions[0, 4], [0, 0, -1], atol=1e-6)  # the middle
    assert directions[0, 0, 0] < 0 < directions[0, 0, 1]  # to the left, and up
    np.testing.assert_allclose(origins[0], [0, 0, 2.7], atol=1e-6)


def test_cameras_stay_on_their_sphere_and_look_at_the_pivot():
    yaw, pitch, pivot = np.array([0.3, -0.5]), np.array([-0.2, 0.4]), (0.1, 0.0, 0.2)
    camera = np.asarray(cameras.look_at(yaw, pitch, radius=3.0, pivot=pivot))
    pose = camera[:, :16].reshape(2, 4, 4)
    position = pose[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(position, axis=1), 3, atol=1e-5)
    assert position[0, 0] > 0 > position[1, 0]  # yaw: to the viewer's right, left
    assert position[0, 1] > 0 > position[1, 1]  # pitch: above, below
    towards = np.array(pivot) - position
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    np.testing.assert_allclose(pose[:, :3, 2], towards, atol=1e-6)
    for turn in pose[:, :3, :3]:
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
        assert turn[1, 0] == pytest.approx(0, abs=1e-6)  # no roll


# Planes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plane", "across", "along"), [(0, 0, 1), (1, 0, 2), (2, 2, 0)]
)
def test_a_plane_is_read_along_its_axes(plane, across, along):
    """Planes that hold their own coordinates are interpolated exactly."""
    centres = (np.arange(8) + 0.5) / 8 * 2 - 1
    planes = np.zeros((8, 8, 6), np.float32)
    planes[..., 2 * plane] = centres[None, :]
    planes[..., 2 * plane + 1] = centres[:, None]
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 3)).astype(np.float32)
    found = look_up(planes, points, 1.0) * 3  # the mean of three planes
    np.testing.assert_allclose(found, 2 * points[:, [across, along]], atol=1e-6)


def test_features_are_zero_outside_the_box():
    planes = np.ones((4, 4, 6), np.float32)
    points = [[0, 0, 0], [0.7, 0.7, 0.7], [0.5, 0, 0], [0, 0.5, 0], [9, -9, 9]]
    found = look_up(planes, np.array(points, np.float32), 1.0)
    # At an edge, half of the taps are outside. All planes read x, and only one reads y.
    np.testing.assert_allclose(found[:, 0], [1, 0, 1 / 2, 5 / 6, 0], atol=1e-6)


# Renderer -----------------------------------------------------------------------------

SETTINGS = Rendering(4, 40, 30, 1.0, 3.0, 1.0)


def test_a_thick_wall_is_seen_at_its_front_and_an_empty_ray_at_its_end():
    wall = 2.0

    def field(planes, points):
        density = jnp.where(points[:, 2] > wall, 200.0, -200.0)
        return jnp.where(points[:, 2:] > wall, 0.75, 0.0), density

    directions = np.array([[[0, 0, 1], [0, 1, 0]]], np.float32)
    planes = np.zeros((1, 1, 1, 3), np.float32)
    colours, depths = render(
        field, planes, np.zeros((1, 3), np.float32), directions, SETTINGS
    )
    np.testing.assert_allclose(colours[0, 0], 0.5, atol=0.05)  # 2 * 0.75 - 1
    assert depths[0, 0] == pytest.approx(wall, abs=0.06)  # a first pass's step
    np.testing.assert_allclose(colours[0, 1], -1, atol=1e-6)
    # The last sample, half a step beyond the end.
    assert depths[0, 1] == pytest.approx(3 + 1 / 39, abs=1e-4)


def test_weights_are_those_of_volume_rendering():
    rng = np.random.default_rng(0)
    depths = np.sort(rng.uniform(1, 2, (3, 6)))
    raw = rng.standard_normal((3, 6))
    weights = interval_weights(jnp.asarray(depths), jnp.asarray(raw))
    for ray in range(3):
        passed = 1.0
        for i in range(5):
            density = np.log1p(np.exp((raw[ray, i] + raw[ray, i + 1]) / 2 - 1))
            alpha = 1 - np.exp(-density * (depths[ray, i + 1] - depths[ray, i]))
            assert weights[ray, i] == pytest.approx(passed * alpha, rel=1e-4)
            passed *= 1 - alpha


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(0)
    depths = rng.uniform(1, 2, (4, 9)).astype(np.float32)
    colours = rng.uniform(0, 1, (4, 9, 3)).astype(np.float32)
    densities = rng.standard_normal((4, 9)).astype(np.float32)
    order = rng.permutation(9)
    first = composite(depths, colours, densities)
    second = composite(depths[:, order], colours[:, order], densities[:, order])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_importance_samples_gather_where_weights_are():
    depths = np.linspace(0, 1, 21, dtype=np.float32)[None]
    weights = np.zeros((1, 20), np.float32)
    weights[0, 12] = 1.0  # between 0.60 and 0.65
    quantiles = (np.arange(200, dtype=np.float32)[None] + 0.5) / 200
    found = np.asarray(importance_depths(depths, weights, quantiles))
    assert np.all(np.diff(found) >= 0)
    assert found.min() >= 0.025
    assert found.max() <= 0.925  # the last interval has no samples, as published
    # The blurred peak spans three intervals, shifted by half of one.
    assert np.mean((found > 0.52) & (found < 0.68)) > 0.85
    gradient = jax.grad(lambda w: importance_depths(depths, w, quantiles).sum())
    assert not np.any(gradient(weights))


def test_chunks_change_neither_images_nor_gradients(small):
    synthesis = small.synthesis
    planes = jax.random.normal(jax.random.key(0), (2, 16, 16, 12))
    rays = cameras.rays(cameras.look_at(np.array([0.0, 0.2])), 6)

    def run(chunk):
        def loss(planes):
            colours, depths = render(
                synthesis._look, planes, *rays, synthesis.rendering, chunk=chunk
            )
            return jnp.sum(colours**2), (colours, depths)

        return jax.jit(jax.grad(loss, has_aux=True))(planes)

    whole = run(36)
    assert np.abs(whole[0]).max() > 1e-3
    for chunk in (5, 12):  # 5 does not divide 36
        for a, b in zip(
            jax.tree.leaves(whole), jax.tree.leaves(run(chunk)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_key_draws_samples_and_none_spreads_them(small):
    planes = jax.random.normal(jax.random.key(0), (1, 16, 16, 12))
    even, again = (small.synthesis.render(planes)[0] for _ in range(2))
    np.testing.assert_array_equal(even, again)
    drawn = [
        small.synthesis.render(planes, key=jax.random.key(i)[None])[0]
        for i in (1, 1, 2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4
    assert np.abs(drawn[0] - even).max() > 1e-4


# The generator ------------------------------------------------------------------------


def test_attributes(small):
    assert (small.num_ws, small.resolution) == (6, 32)
    assert (small.z_dim, small.w_dim) == (8, 7)
    assert small.feature_name == "b16.img"
    again = nnx.eval_shape(lambda: type(small)(**small.config, rngs=nnx.Rngs(0)))
    assert again.config == small.config
    hash(nnx.graphdef(small))  # static argument of jit


def test_one_pass_gives_the_image_and_the_planes_that_it_shows(small):
    w = jax.random.normal(jax.random.key(0), (2, 6, 7))
    camera = cameras.look_at(0.2)

    def both(synthesis, w):
        image, activations = synthesis(w, camera=camera)
        planes = activations[synthesis.feature_name]
        features, _ = synthesis.render(planes, camera=camera)
        return image, synthesis.superresolution(features, w[:, -1])

    image, shown = tiny.jitted(small.synthesis, both, w)
    assert image.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(image, shown, atol=1e-5)


def test_training_changes_the_backbone_only(small):
    trained = nnx.to_flat_state(nnx.state(small.synthesis, TRAINABLE))
    names = {path[0] for path, _ in trained}
    assert names == {"backbone"}
    frozen = {
        path[0] for path, _ in nnx.to_flat_state(nnx.state(small.synthesis, ops.Buffer))
    }
    assert frozen == {"backbone", "decoder", "superresolution"}  # stored noise, and all
    affine = {style for style, _ in small.synthesis.affine_layers()}
    assert affine == set(range(6))


def test_codes_are_conditioned_on_a_camera_in_front_by_default(small):
    z = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    mapping = small.mapping
    plain = mapping(z)
    np.testing.assert_allclose(mapping(z, camera=cameras.look_at()), plain, atol=1e-6)
    turned = mapping(z, camera=cameras.look_at(0.5))
    assert np.abs(turned - plain).max() > 1e-5  # of about 1e-2
    blind = tiny.eg3d(camera_scale=0.0).mapping
    np.testing.assert_allclose(blind(z, camera=cameras.look_at(0.5)), blind(z))
    w_avg = mapping.w_avg[...][None, None]
    np.testing.assert_allclose(
        mapping(z, 0.5), w_avg + 0.5 * (plain - w_avg), atol=1e-5
    )


def test_wrong_arguments_raise(small):
    w = jnp.zeros((2, 6, 7))
    with pytest.raises(ValueError, match=r"\[1, 5, 7\].*6"):
        small.synthesis(w[:1, :5])
    for camera in (jnp.zeros((25,)), jnp.zeros((2, 16)), jnp.zeros((3, 25))):
        with pytest.raises(ValueError, match=r"camera has shape .*\[2, 25\].*look_at"):
            small.synthesis(w, camera=camera)
    with pytest.raises(ValueError, match="30 pixels cannot be halved 2 times"):
        tiny.eg3d(resolution=30)
    with pytest.raises(ValueError, match=r"3 \+ 5 samples"):
        tiny.eg3d(depth_samples=3)


def test_super_resolution_accepts_features_of_any_size():
    network = tiny.random(
        lambda rngs: SuperResolution(4, (5, 4), 32, 7, conv_clamp=None, rngs=rngs)
    )
    w = np.ones((1, 7), np.float32)
    flat = [network(np.ones((1, size, size, 4), np.float32), w) for size in (4, 8, 16)]
    for image in flat:  # a constant stays constant when resized
        np.testing.assert_allclose(image, flat[1], atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_gradients_in_float64():
    rng = np.random.default_rng(0)
    planes, points = rng.standard_normal((4, 4, 6)), rng.uniform(-0.4, 0.4, (5, 3))
    check_grads(lambda *x: look_up(*x, 1.0), (planes, points), order=1, modes="rev")
    depths, densities = rng.uniform(1, 2, (3, 7)), rng.standard_normal((3, 7))
    colours = rng.uniform(0, 1, (3, 7, 2))
    check_grads(
        lambda *x: composite(depths, *x), (colours, densities), order=1, modes="rev"
    )


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64(small):
    graph, state = nnx.split(small)
    double = nnx.merge(graph, jax.tree.map(lambda a: a.astype("float64"), state))
    z = np.ones((1, 8))
    out = jax.eval_shape(lambda z: double.synthesis(double.mapping(z)), z)
    assert {a.dtype for a in jax.tree.leaves(out)} == {np.dtype("float64")}


def test_convolutions_run_in_the_given_dtype_and_images_stay_float32(small):
    w = jax.random.normal(jax.random.key(0), (1, 6, 7))
    made = {
        dtype: tiny.jitted(small.synthesis, lambda s, w, d=dtype: s(w, dtype=d), w)
        for dtype in (None, "bfloat16")
    }
    (image, _), (rough, activations) = made[None], made["bfloat16"]
    assert rough.dtype == "float32"
    assert activations["b8.x"].dtype == "bfloat16"
    error = np.linalg.norm(image - rough) / np.linalg.norm(image)
    assert 1e-4 < error < 5e-2
