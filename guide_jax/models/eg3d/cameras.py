"""Cameras as EG3D's networks read them, and the rays through their pixels.

A camera is a vector of 25 numbers: its 4x4 camera-to-world matrix, row by row, and its
3x3 matrix of intrinsics in units of the image's side. The camera looks along its z
axis, with x to the right and y down in the image. In the world, y is up, and a face
looks along z, with x to the viewer's right.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from guide_jax.models.shapes import Array

LENGTH = 25
RADIUS = 2.7  # from the camera to the world's origin, in published face models
# The published step shows the face from a little above, and up to this far from the
# sides, in radians. Its cameras look at the world's origin, not at the training data's
# pivot: it looks for the pivot under a name that the published files don't use.
STEP_YAW, STEP_PITCH = math.radians(15), -0.2
JUDGED_VIEWS = 11  # evaluation spreads so many evenly over the same yaws
FIELD_OF_VIEW = 18.837  # degrees, along the diagonal
# The published code rounds pi and the square root of 2, and its cameras depend on it.
PI, DIAGONAL = 3.14159, 1.414
FOCAL_LENGTH = 1 / (math.tan(FIELD_OF_VIEW * PI / 360) * DIAGONAL)  # 4.2634


def look_at(
    yaw: jax.typing.ArrayLike = 0.0,
    pitch: jax.typing.ArrayLike = 0.0,
    *,
    radius: float | int = RADIUS,
    pivot: Sequence[float | int] = (0.0, 0.0, 0.0),
) -> Float[Array, "N 25"]:
    """Returns cameras on a sphere around the origin that look at a point.

    Args:
        yaw: radians, a number or `[N]`; above 0 the camera is on the viewer's right.
        pitch: radians, a number or `[N]`; below 0 the camera is above the face. As
            published, the height is `-2 / pi * pitch * radius`, so this is an angle for
            small values only; it must be within pi / 2.
        radius: of the sphere.
        pivot: the point that the cameras look at.

    Returns:
        Float cameras `[N, 25]`, without roll.
    """
    yaw, pitch = jnp.broadcast_arrays(
        *(jnp.atleast_1d(jnp.asarray(angle, float)) for angle in (yaw, pitch))
    )
    height = -2 / math.pi * pitch
    flat = jnp.sqrt(1 - height**2)
    from_origin = jnp.stack([flat * jnp.sin(yaw), height, flat * jnp.cos(yaw)], axis=-1)
    position = radius * from_origin  # [N, 3]
    forward = _normalize(jnp.asarray(pivot, position.dtype)[None] - position)
    up = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 0.0], forward.dtype), forward.shape)
    right = _normalize(jnp.cross(forward, up))
    down = jnp.cross(forward, right)
    columns = jnp.stack([right, down, forward, position], axis=-1)  # [N, 3, 4]
    last = jnp.asarray([0.0, 0.0, 0.0, 1.0], columns.dtype)
    f = FOCAL_LENGTH
    intrinsics = jnp.asarray([f, 0, 0.5, 0, f, 0.5, 0, 0, 1], columns.dtype)
    rest = jnp.concatenate([last, intrinsics])
    N = len(columns)
    return jnp.concatenate(
        [columns.reshape(N, 12), jnp.broadcast_to(rest, (N, len(rest)))], axis=1
    )


def of_step(
    key: jax.Array, radius: float = RADIUS, *, count: int = 1
) -> Float[Array, "N 25"]:
    """Draws cameras as those of training steps, `[count, 25]`: the yaw is uniform."""
    yaw = jax.random.uniform(key, (count,), float, -STEP_YAW, STEP_YAW)
    return look_at(yaw, STEP_PITCH, radius=radius)


def judged_views(radius: float = RADIUS) -> Float[Array, "V 25"]:
    """Returns the published evaluation's cameras, from one side to the other."""
    yaw = jnp.linspace(-STEP_YAW, STEP_YAW, JUDGED_VIEWS)
    return look_at(yaw, STEP_PITCH, radius=radius)


def of_rows(
    camera: Array | None, rows: Array, radius: float | int = RADIUS
) -> Float[Array, "N 25"]:
    """Returns a camera for each row of an array, in its dtype.

    Args:
        camera: `[N, 25]`, `[1, 25]` for all rows, or None for the front.
        rows: `[N, ...]`.
        radius: distance of the camera in front.

    Raises:
        ValueError: the camera has another shape.
    """
    N = len(rows)
    if camera is None:
        camera = look_at(radius=radius)
    if camera.shape not in ((1, LENGTH), (N, LENGTH)):
        raise ValueError(
            f"the camera has shape {list(camera.shape)}; give [{N}, {LENGTH}] or"
            f" [1, {LENGTH}], as from guide_jax.models.eg3d.cameras.look_at"
        )
    return jnp.broadcast_to(camera, (N, LENGTH)).astype(rows.dtype)


def rays(
    camera: Float[Array, "N 25"], size: int
) -> tuple[Float[Array, "N 3"], Float[Array, "N R 3"]]:
    """Returns the rays through the centres of an image's pixels.

    Args:
        camera: `[N, 25]`.
        size: side of the image, in pixels.

    Returns:
        The origins `[N, 3]`, and unit directions `[N, size * size, 3]`, row by row.
    """
    N = len(camera)
    pose = camera[:, :16].reshape(N, 4, 4)
    intrinsics = camera[:, 16:].reshape(N, 3, 3)[..., None, None]
    centres = (jnp.arange(size, dtype=camera.dtype) + 0.5) / size
    across, along = centres[None, None, :], centres[None, :, None]
    y = (along - intrinsics[:, 1, 2]) / intrinsics[:, 1, 1]  # [N, size, 1]
    x = across - intrinsics[:, 0, 2] - intrinsics[:, 0, 1] * y
    x, y = jnp.broadcast_arrays(x / intrinsics[:, 0, 0], y)
    inside = jnp.stack([x, y, jnp.ones_like(x)], axis=-1).reshape(N, size * size, 3)
    directions = jnp.einsum(
        "nij,nrj->nri", pose[:, :3, :3], inside, precision="highest"
    )
    return pose[:, :3, 3], _normalize(directions)


def _normalize(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
