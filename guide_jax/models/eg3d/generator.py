"""EG3D's generator, which joins its parts: mapping, backbone, renderer, enlargement."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models import ops, stylegan2
from guide_jax.models.eg3d import cameras
from guide_jax.models.eg3d.mapping import Mapping
from guide_jax.models.eg3d.planes import PLANES, Decoder, look_up
from guide_jax.models.eg3d.renderer import Rendering, render
from guide_jax.models.eg3d.superresolution import SuperResolution
from guide_jax.models.shapes import Array


class Synthesis(nnx.Module):
    """Maps codes to planes, and renders these from a camera.

    As in the published method, training changes the backbone only: the decoder's and
    the enlargement's weights are buffers.

    Attributes:
        backbone: StyleGAN2's synthesis network; its image is the planes.
        feature_name: the planes' name among the activations, as in 'b256.img'.
        num_ws: L, the number of styles that the backbone reads; the enlargement reads
            the last of them again.
    """

    def __init__(
        self,
        w_dim: int,
        channels: Sequence[int],
        plane_channels: int,
        sr_channels: Sequence[int],
        resolution: int,
        *,
        rendering: Rendering,
        camera_radius: float | int,
        conv_clamp: float | int | None,
        sr_conv_clamp: float | int | None,
        rngs: nnx.Rngs,
    ):
        self.rendering = rendering
        self.camera_radius = camera_radius
        self.backbone = stylegan2.Synthesis(
            w_dim,
            channels,
            image_channels=PLANES * plane_channels,
            conv_clamp=conv_clamp,
            rngs=rngs,
        )
        self.num_ws = self.backbone.num_ws
        self.feature_name = f"b{self.backbone.resolutions[-1]}.img"
        self.decoder = Decoder(plane_channels, rngs=rngs)
        self.superresolution = SuperResolution(
            plane_channels,
            sr_channels,
            resolution,
            w_dim,
            conv_clamp=sr_conv_clamp,
            rngs=rngs,
        )
        ops.freeze(self.decoder)
        ops.freeze(self.superresolution)

    def __call__(
        self,
        w: Float[Array, "... L D"],  # any rank: check_input's error is plainer
        noise: str = "const",
        dtype: jax.typing.DTypeLike | None = None,
        *,
        camera: Array | None = None,
        key: jax.Array | None = None,
        noise_seed: jax.Array | None = None,
    ) -> tuple[Float[Array, "N H W 3"], dict[str, Float[Array, "N _ _ _"]]]:
        """Synthesises images from codes.

        Args:
            w: [N, L, D].
            noise: the backbone's: 'const' for the stored noise, 'none' for no noise.
            dtype: dtype of the convolutions; None for the parameters'.
            camera: the view, [N, 25] or [1, 25] as `cameras.look_at` returns it; None
                for the front.
            key: keys [N] that draw the samples along each image's rays, for training;
                None spreads them evenly.
            noise_seed: uint32 [N], from which the backbone's noise is drawn, instead
                of `noise`; for `config.compat`.

        Returns:
            The images [N, H, W, 3], about [-1, 1] and not clipped, and the backbone's
            activations by name, NHWC, among them the planes.

        Raises:
            ValueError: w does not hold L vectors, the noise mode is unknown, or
                `camera` has another shape.
        """
        planes, activations = self.backbone(w, noise, dtype, noise_seed=noise_seed)
        features, _ = self.render(planes, camera=camera, key=key)
        return self.superresolution(features, w[:, -1], dtype), activations

    def render(
        self,
        planes: Float[Array, "N H W F"],
        *,
        camera: Array | None = None,
        key: jax.Array | None = None,
        size: int | None = None,
    ) -> tuple[Float[Array, "N S S C"], Float[Array, "N S S"]]:
        """Renders planes.

        Args:
            planes: [N, H, W, 3 * C], as `__call__` returns them.
            camera: as for `__call__`.
            key: as for `__call__`.
            size: side of the result, in pixels; None for the published one.

        Returns:
            Features [N, S, S, C], of which the first three are a small image in about
            [-1, 1], and the distance from the camera [N, S, S].
        """
        size = size or self.rendering.size
        camera = cameras.of_rows(camera, planes, self.camera_radius)
        origins, directions = cameras.rays(camera, size)
        parts = planes, origins, directions
        features, depths = render(self._look, *parts, self.rendering, key)
        N = len(planes)
        return features.reshape(N, size, size, -1), depths.reshape(N, size, size)

    def query(
        self, planes: Float[Array, "N H W F"], points: Float[Array, "N P 3"]
    ) -> tuple[Float[Array, "N P C"], Float[Array, "N P"]]:
        """Returns colours [N, P, C] and raw densities [N, P] at points of the world."""
        return jax.vmap(self._look)(planes, points)

    def _look(
        self, planes: Float[Array, "H W F"], points: Float[Array, "P 3"]
    ) -> tuple[Float[Array, "P C"], Float[Array, " P"]]:
        return self.decoder(look_up(planes, points, self.rendering.box))

    def affine_layers(self) -> list[tuple[int, ops.Linear]]:
        """Returns each layer of the backbone that reads a style, and which of the L."""
        return self.backbone.affine_layers()


class EG3D(nnx.Module):
    """An EG3D generator; the defaults are those of the published 512 px face models.

    Args:
        resolution: side of the image, in pixels; a power of two.
        channels: the backbone's at 4, 8, ... pixels, up to the planes' size.
        plane_channels: C, channels of each of the three planes.
        sr_channels: of the enlargement's blocks; each doubles the size.
        render_size: side of the rendered image before enlargement.
        depth_samples: samples of a ray's first pass.
        importance_samples: samples of its second pass.
        near: distance from the camera at which rays begin.
        far: distance at which they end.
        box: side of the cube that the planes cover.
        camera_radius: distance of the cameras from the world's origin.
        camera_pivot: the point that the training data's cameras look at.
        camera_scale: factor on the camera that the mapping reads; 0 hides it.
        z_dim: length of a latent.
        w_dim: length of a style vector.
        mapping_layers: number of the mapping network's layers.
        conv_clamp: limit on the output of the backbone's layers; None for none.
        sr_conv_clamp: limit on the output of the enlargement's layers.
        rngs: source of the initial weights and of the stored noise.

    Raises:
        ValueError: the resolution or the numbers of samples are impossible.
    """

    kind = "eg3d"

    def __init__(
        self,
        *,
        resolution: int = 512,
        channels: Sequence[int] = (512, 512, 512, 512, 512, 256, 128),
        plane_channels: int = 32,
        sr_channels: Sequence[int] = (256, 128),
        render_size: int = 128,
        depth_samples: int = 48,
        importance_samples: int = 48,
        near: float | int = 2.25,
        far: float | int = 3.3,
        box: float | int = 1.0,
        camera_radius: float | int = cameras.RADIUS,
        camera_pivot: Sequence[float | int] = (0.0, 0.0, 0.2),
        camera_scale: float | int = 1.0,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 2,
        conv_clamp: float | int | None = None,
        sr_conv_clamp: float | int | None = 256,
        rngs: nnx.Rngs,
    ):
        if resolution >> len(sr_channels) << len(sr_channels) != resolution:
            raise ValueError(
                f"{resolution} pixels cannot be halved {len(sr_channels)} times, once"
                " for each block of the super-resolution"
            )
        if depth_samples < 4 or importance_samples < 1:
            raise ValueError(
                f"{depth_samples} + {importance_samples} samples a ray are too few;"
                " at least 4 + 1 are needed"
            )
        # A tuple, because a dict would make the graph definition unhashable.
        self._config = (
            ("resolution", resolution),
            ("channels", tuple(channels)),
            ("plane_channels", plane_channels),
            ("sr_channels", tuple(sr_channels)),
            ("render_size", render_size),
            ("depth_samples", depth_samples),
            ("importance_samples", importance_samples),
            ("near", near),
            ("far", far),
            ("box", box),
            ("camera_radius", camera_radius),
            ("camera_pivot", tuple(camera_pivot)),
            ("camera_scale", camera_scale),
            ("z_dim", z_dim),
            ("w_dim", w_dim),
            ("mapping_layers", mapping_layers),
            ("conv_clamp", conv_clamp),
            ("sr_conv_clamp", sr_conv_clamp),
        )
        self.resolution = resolution
        self.z_dim = z_dim
        self.w_dim = w_dim
        self.camera_radius = camera_radius
        self.camera_pivot = tuple(camera_pivot)
        self.synthesis = Synthesis(
            w_dim,
            channels,
            plane_channels,
            sr_channels,
            resolution,
            rendering=Rendering(
                render_size, depth_samples, importance_samples, near, far, box
            ),
            camera_radius=camera_radius,
            conv_clamp=conv_clamp,
            sr_conv_clamp=sr_conv_clamp,
            rngs=rngs,
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(
            z_dim,
            w_dim,
            self.num_ws,
            mapping_layers,
            camera_radius=camera_radius,
            camera_scale=camera_scale,
            rngs=rngs,
        )

    @property
    def feature_name(self) -> str:
        """Name of the planes among the activations, which the loss compares."""
        return self.synthesis.feature_name

    def draw_view(self, key: jax.Array, N: int) -> dict[str, jax.Array]:
        """Draws the view of a training step: a camera, and the samples along rays.

        Args:
            key: the step's.
            N: number of images.

        Returns:
            Arguments of the synthesis, N rows each, with the same camera.
        """
        key_camera, key_rays = jax.random.split(key)
        camera = cameras.of_step(key_camera, self.camera_radius)
        return {
            "camera": jnp.broadcast_to(camera, (N, cameras.LENGTH)),
            "key": jax.random.split(key_rays, N),
        }

    def views_of_samples(self, seed: int, N: int) -> dict[str, jax.Array]:
        """Returns the views in which FID compares N images, drawn as a step's are."""
        key = jax.random.key(seed)
        return {"camera": cameras.of_step(key, self.camera_radius, count=N)}

    def views_at(self, yaw: Float[Array, " V"]) -> dict[str, jax.Array]:
        """Returns views from a training step's height at yaws in radians, a row each.

        Args:
            yaw: `[V]`; above 0 the camera is on the viewer's right.
        """
        pitch = cameras.STEP_PITCH
        return {"camera": cameras.look_at(yaw, pitch, radius=self.camera_radius)}

    def views_to_judge(self) -> dict[str, jax.Array]:
        """Returns the views that evaluation compares faces from, a row each."""
        return {"camera": cameras.judged_views(self.camera_radius)}

    @property
    def config(self) -> dict:
        """The constructor's arguments; JSON types, except for tuples."""
        return dict(self._config)
