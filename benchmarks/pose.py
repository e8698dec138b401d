"""Measures the error of the pose that is estimated from a face's five points.

    python -m benchmarks.pose --weights weights [--cameras PHOTOS]

Needs weights/mtcnn. Prints the error on projections of the mean face with noise; how
the estimate follows the pose direction of the demo's generators, and changes when their
images are mirrored; and the differences from published crops and cameras, if PHOTOS is
a folder of photos with a cameras.json, such as `example/real_person` of
https://github.com/jiangyzy/GOAE. benchmarks/README.md has the results.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from guide_jax.faces.align import EG3D_SIDE, eg3d_quad
from guide_jax.faces.detect import detect
from guide_jax.faces.photos import read_image, to_uint8
from guide_jax.faces.pose import Pose, estimate_pose, project
from guide_jax.models.mtcnn import MTCNN
from guide_jax.models.network import jitted
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network

TRIALS = 1000
PEOPLE, PSI = 20, 0.7
STEPS = np.linspace(-2, 2, 9, dtype=np.float32)  # in units of the direction
SIDE = 256  # of the images in which faces are detected, in pixels


def on_projections(side: int) -> np.ndarray:
    """Returns the root mean squared errors of yaw, pitch and roll, in degrees.

    Args:
        side: side of EG3D's crop in pixels; the points' noise is one pixel.
    """
    rng, errors = np.random.default_rng(0), []
    for _ in range(TRIALS):
        pose = Pose(*np.deg2rad(rng.uniform([-40, -20, -10], [40, 20, 10])))
        points = project(pose) * [1, -1] * side / EG3D_SIDE
        points += rng.normal(0, 1, points.shape)
        errors.append(np.subtract(estimate_pose(points), pose))
    return np.rad2deg(np.sqrt(np.mean(np.square(errors), axis=0)))


def yaw_in(image: np.ndarray, mtcnn: MTCNN) -> float:
    """Returns the yaw of an image's face in degrees, or NaN without a face."""
    faces = detect(mtcnn, image, min_face=SIDE / 4)
    return float(np.rad2deg(estimate_pose(faces[0].points).yaw)) if faces else np.nan


def on_generator(name: str, mtcnn: MTCNN) -> tuple[np.ndarray, np.ndarray]:
    """Returns the yaws of people along the pose direction, `[PEOPLE, STEPS]`.

    Returns:
        The yaws of the images, and of the mirrored images, in degrees.
    """
    generator = load_network(BUNDLE / name)
    direction = np.load(BUNDLE / "directions.npz")["pose"]
    z = np.random.default_rng(0).standard_normal((PEOPLE, generator.z_dim))
    mapping = jitted(generator.mapping, lambda mapping, z: mapping(z, psi=PSI))
    synthesis = jitted(generator.synthesis, lambda synthesis, w: synthesis(w)[0])
    yaws, mirrored = [], []
    for w in np.asarray(mapping(z.astype(np.float32))):
        for image in np.asarray(synthesis(w + STEPS[:, None, None] * direction)):
            small = Image.fromarray(to_uint8(image))
            large = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            yaws.append(yaw_in(large, mtcnn))
            mirrored.append(yaw_in(np.ascontiguousarray(large[:, ::-1]), mtcnn))
    shape = (PEOPLE, len(STEPS))
    return np.reshape(yaws, shape), np.reshape(mirrored, shape)


def on_photos(folder: Path, mtcnn: MTCNN):
    """Prints how estimates on cropped photos differ from the published values."""
    cameras = json.loads((folder / "cameras.json").read_text())
    errors = []
    for name, camera in sorted(cameras.items()):
        image = read_image(folder / name)
        points = detect(mtcnn, image)[0].points
        axes = np.array(camera["pose"])[:3, :3]  # columns: right, down, forward
        x, y, z = -axes[:, 2]
        published = np.arctan2(x, z), np.arcsin(y)
        ours = estimate_pose(points)
        errors.append(np.subtract(ours[:2], published))
        quad = eg3d_quad(points) + 0.5
        side = np.hypot(*(quad[3] - quad[0])) / len(image)
        x, y = quad.mean(0) / len(image) - 0.5
        print(
            f"{name:8} yaw, pitch: published {_degrees(published)}, ours"
            f" {_degrees(ours[:2])}; roll {_degrees(ours[2:])}; the crop's side is"
            f" {side:.3f} of the published, its centre off by {x:+.3f} {y:+.3f}"
        )
    yaw, pitch = np.rad2deg(np.sqrt(np.mean(np.square(errors), axis=0)))
    print(f"root mean square difference: yaw {yaw:.1f}, pitch {pitch:.1f} degrees")


def _degrees(angles) -> str:
    return " ".join(f"{angle:+.1f}" for angle in np.rad2deg(angles))


def main():
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--cameras", type=Path)
    args = parser.parse_args()
    for side in (512, 256, 128):
        yaw, pitch, roll = on_projections(side)
        print(f"{side} px, noise of a pixel: {yaw:.2f} {pitch:.2f} {roll:.2f} degrees")
    mtcnn = load_network(args.weights / "mtcnn")
    for name in ("stylegan2_64.npz", "mobilestylegan_128.npz"):
        yaws, mirrored = on_generator(name, mtcnn)
        print(f"{name}: mean yaw {np.nanmean(yaws, 0).round(1)}")
        print(
            f"  faces found {np.isfinite(yaws).mean():.3f}, steps that raise the yaw"
            f" {np.mean(np.diff(yaws, axis=1) > 0):.3f}; yaw plus the mirrored image's:"
            f" mean {np.nanmean(yaws + mirrored):+.2f}, root mean square"
            f" {np.sqrt(np.nanmean((yaws + mirrored) ** 2)):.2f} degrees"
        )
    if args.cameras:
        on_photos(args.cameras, mtcnn)


if __name__ == "__main__":
    main()
