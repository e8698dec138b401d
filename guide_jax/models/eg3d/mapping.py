"""EG3D's mapping network: StyleGAN2's, conditioned on a camera."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from guide_jax.models import ops, stylegan2
from guide_jax.models.eg3d import cameras
from guide_jax.models.shapes import Array

MAPPING_LR_MULTIPLIER = 0.01


class Mapping(stylegan2.Mapping):
    """StyleGAN2's mapping network, which also reads a camera through `embed`.

    In training, EG3D told the mapping from where the image would be seen, because
    people in photos look at the camera with different expressions. For one person seen
    from several sides this camera must not change: by default it is in front.
    """

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int,
        *,
        camera_radius: float | int,
        camera_scale: float | int,
        rngs: nnx.Rngs,
    ):
        widths = z_dim + w_dim, w_dim, num_ws, num_layers
        super().__init__(*widths, MAPPING_LR_MULTIPLIER, rngs=rngs)
        self.embed = ops.Linear(cameras.LENGTH, w_dim, rngs=rngs)
        self.camera_radius = camera_radius
        self.camera_scale = camera_scale

    def __call__(
        self,
        z: Float[Array, "N Z"],
        psi: float | int = 1.0,
        cutoff: int | None = None,
        *,
        camera: Array | None = None,
    ) -> Float[Array, "N L D"]:
        """Maps latents z to codes w.

        Args:
            z: [N, Z], standard normal.
            psi: truncation, a Python number: 1 for none, 0 gives `w_avg`.
            cutoff: number of the L vectors to truncate, from the first; None for all.
            camera: the camera that the codes are conditioned on, [N, 25] or [1, 25];
                None for the front.

        Returns:
            w [N, L, D], the same vector L times, apart from truncation.

        Raises:
            ValueError: `camera` has another shape.
        """
        camera = cameras.of_rows(camera, z, self.camera_radius)
        read = ops.normalize_2nd_moment(self.embed(camera * self.camera_scale))
        x = jnp.concatenate([ops.normalize_2nd_moment(z), read], axis=1)
        return self.styles(x, psi, cutoff)
