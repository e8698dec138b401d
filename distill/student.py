"""Distils a StyleGAN2 of our own making from the demo's generator.

    python -m distill.student --facenet WHEEL --dlib SDIST

The student has the teacher's mapping network, so the same w, and a synthesis network of
StyleGAN2's kind. It learns from codes drawn without end, coarse to fine: first up to
16 px with large batches, where an image costs a fifth of a whole one, then up to 32 and
64 px. In every stage it copies the main directions of the teacher's activations, through
1x1 projections learned beside it, and the image at every step of the skip pyramid.

Every stage is checkpointed and goes on where it stopped. The student would earn its place
in the bundle with an identity similarity to its teacher above 0.5 (`--facenet` and
`--dlib`, the packages of `distill.teachers`, measure it).
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from distill import BUNDLE, WORK, faces
from distill.generator import image_loss, save_grid
from distill.teachers import Teachers, unit
from distill.training import fit
from guide_jax.checkpoint import fill, flat_leaves, load_network, save_network
from guide_jax.data import to_uint8
from guide_jax.models.mobilestylegan import MobileStyleGAN
from guide_jax.models.stylegan2 import StyleGAN2

WIDTHS = {4: 256, 8: 256, 16: 192, 32: 96, 64: 32}  # channels by resolution
HELD_OUT = 1_000_000 + np.arange(200)  # seeds of the people measured
STUDIED = 256  # faces from which the teacher's main directions are read
PSI = (0.5, 1.0)  # range of the truncation in training


class Stage(NamedTuple):
    """How to train up to a resolution; `share` multiplies `--steps`."""

    batch: int
    share: float
    learning_rate: float


STAGES = {16: Stage(32, 2.0, 1e-2), 32: Stage(16, 1.0, 5e-3), 64: Stage(8, 1.0, 3e-3)}


def fresh(teacher: MobileStyleGAN, resolution: int) -> StyleGAN2:
    """Returns a student with the teacher's mapping and, where they fit, its styles."""
    channels = tuple(n for size, n in WIDTHS.items() if size <= resolution)
    shape = {"z_dim": teacher.z_dim, "w_dim": teacher.w_dim}
    student = StyleGAN2(
        resolution=resolution,
        channels=channels,
        mapping_layers=teacher.mapping_layers,
        rngs=nnx.Rngs(0),
        **shape,
    )
    old, new = flat_leaves(teacher), flat_leaves(student)
    new |= {path: leaf for path, leaf in old.items() if path.startswith("mapping.")}
    pairs = {"b4.conv1": "b4"}
    for size in list(WIDTHS)[1 : len(channels)]:
        pairs |= {f"b{size}.conv0": f"b{size}.up", f"b{size}.conv1": f"b{size}.conv1"}
    for mine, theirs in pairs.items():
        # The teacher's styles know which directions of W matter; most do not.
        theirs = f"synthesis.{theirs}".removesuffix(".up")
        name = "up" if mine.endswith("conv0") else "affine"
        for leaf, gain in (("weight", np.sqrt(teacher.w_dim)), ("bias", 1.0)):
            path = f"synthesis.{mine}.affine.{leaf}"
            width = new[path].shape[-1]
            new[path] = gain * old[f"{theirs}.{name}.{leaf}"][..., :width]
    return fill(student, new)


def codes(network: nnx.Module, z: jax.Array, psi: jax.Array | float) -> jax.Array:
    """Maps z `[N, Z]` to one truncated w each, `[N, D]`; psi `[N, 1]` or a number."""
    w_avg = network.mapping.w_avg[...]
    return w_avg + psi * (network.mapping(z)[:, 0] - w_avg)


def synthesise(network: nnx.Module, w: jax.Array) -> tuple[jax.Array, dict]:
    """Runs a generator on one w `[N, D]` for all its layers."""
    return network.synthesis(jnp.repeat(w[:, None], network.num_ws, axis=1))


def average(images: jax.Array, size: int) -> jax.Array:
    """Averages images `[N, H, W, 3]` down to `size` px."""
    n, height = images.shape[:2]
    k = height // size
    return images.reshape(n, size, k, size, k, 3).mean((2, 4))


def study(teacher: MobileStyleGAN, student: StyleGAN2) -> dict:
    """Finds what to read from the teacher's activations.

    Returns:
        By resolution: `directions` `[C, K]` and `origin` `[K]`, which turn activations
        into their K main components (of channels brought to variance 1; K is the
        student's width; the variances add up to K), and `colours` `[C + 1, 3]`, the
        linear map to the averaged image that fits best.
    """
    graph, state = nnx.split(teacher)
    sizes = [
        size
        for size in student.synthesis.resolutions
        if f"b{size}" in teacher.synthesis.block_names
    ]

    @jax.jit
    def make(state, z):
        network = nnx.merge(graph, state)
        image, activations = synthesise(network, codes(network, z, np.mean(PSI)))
        return {s: (average(image, s), activations[f"b{s}.x"]) for s in sizes}

    moments = dict.fromkeys(sizes, 0.0)
    for z in np.split(faces.z_of(np.arange(STUDIED)), STUDIED // 16):
        for size, (image, x) in make(state, z).items():
            rows = np.concatenate([x, np.ones_like(x[..., :1]), image], axis=-1)
            rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
            moments[size] = moments[size] + rows.T @ rows / (len(rows) * STUDIED // 16)
    return {size: _directions(moments[size], WIDTHS[size]) for size in sizes}


def _directions(moments: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Returns an entry of `study` from the second moments of [x, 1, image]."""
    channels = len(moments) - 4
    squares, mean = moments[:-4, :-4], moments[:-4, -4]
    covariance = squares - np.outer(mean, mean)
    scale = np.sqrt(np.diag(covariance)) + 1e-6
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    values, vectors = values[-count:], vectors[:, -count:]
    directions = vectors / scale[:, None] * np.sqrt(count / values.sum())
    known, aims = moments[:-3, :-3], moments[:-3, -3:]
    entry = {
        "directions": directions,
        "origin": mean @ directions,
        "colours": np.linalg.solve(known + 1e-4 * np.eye(channels + 1), aims),
    }
    return {name: value.astype(np.float32) for name, value in entry.items()}


def first_readers(student: StyleGAN2) -> dict[str, dict[str, jax.Array]]:
    """Returns the 1x1 projections to the teacher's main components, at random."""
    key = jax.random.key(1)
    return {
        f"b{size}": {
            "weight": jax.random.normal(key, (WIDTHS[size],) * 2) / WIDTHS[size] ** 0.5,
            "bias": jnp.zeros(WIDTHS[size]),
        }
        for size in student.synthesis.resolutions
    }


def targets(
    teacher: MobileStyleGAN, views: dict, w: jax.Array, resolution: int, whole: bool
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Returns the teacher's image at `resolution` and its main components by size.

    Unless `whole`, the image is read from the activations of that size, and nothing
    above them is computed (`jax.jit` drops what is not used).
    """
    image, activations = synthesise(teacher, w)
    components = {
        size: activations[f"b{size}.x"] @ view["directions"] - view["origin"]
        for size, view in views.items()
        if size <= resolution
    }
    if whole:
        return average(image, resolution), components
    colours = views[resolution]["colours"]
    return activations[f"b{resolution}.x"] @ colours[:-1] + colours[-1], components


def stage_loss(graphs: dict, resolution: int, whole: bool):
    """Returns the objective of one stage, in the form that `fit` wants."""

    def loss(trainable, statistics, frozen, batch):
        teacher = nnx.merge(graphs["teacher"], frozen["teacher"])
        student = nnx.merge(graphs["student"], trainable["student"], frozen["student"])
        lpips = nnx.merge(graphs["lpips"], frozen["lpips"])
        w = codes(teacher, batch["z"], batch["psi"])
        aim, components = targets(teacher, frozen["views"], w, resolution, whole)
        _, activations = synthesise(student, w)
        terms = {}
        for size, component in components.items():
            reader = trainable["readers"][f"b{size}"]
            read = activations[f"b{size}.x"] @ reader["weight"] + reader["bias"]
            # 1 when all is guessed as the mean, 0 when all is known.
            terms[f"x{size}"] = jnp.mean((read - component) ** 2)
        total = sum(terms.values()) / len(terms)
        for size in WIDTHS:
            if size < resolution:
                difference = activations[f"b{size}.img"] - average(aim, size)
                total += jnp.abs(difference).mean()
        judge = lpips if whole else _no_judge
        made = activations[f"b{resolution}.img"]
        image_total, image_terms = image_loss(made, aim, judge)
        return total + 2 * image_total, (statistics, terms | image_terms)

    return loss


def _no_judge(images: jax.Array, targets: jax.Array) -> jax.Array:
    """Stands for LPIPS where images are too small for it."""
    return jnp.zeros(len(images))


def train(
    teacher: MobileStyleGAN, student: StyleGAN2, lpips: nnx.Module, args, folder: Path
) -> StyleGAN2:
    """Takes the student through the stages; returns it trained."""

    def is_trained(path, leaf):
        return path[0] == "synthesis" and isinstance(leaf, nnx.Param)

    graphs, frozen = {}, {"views": study(teacher, student)}
    graphs["teacher"], frozen["teacher"] = nnx.split(teacher)
    graphs["lpips"], frozen["lpips"] = nnx.split(lpips)
    graphs["student"], made, frozen["student"] = nnx.split(student, is_trained, ...)
    trainable = {"student": made, "readers": first_readers(student)}
    for resolution, stage in STAGES.items():
        if resolution > student.resolution:
            break

        def batch_at(step, stage=stage, resolution=resolution):
            rng = np.random.default_rng((resolution, step))
            z = rng.standard_normal((stage.batch, teacher.z_dim), np.float32)
            return {"z": z, "psi": rng.uniform(*PSI, (stage.batch, 1)).astype("f4")}

        trainable, _ = fit(
            stage_loss(graphs, resolution, resolution == student.resolution),
            trainable,
            {},
            frozen,
            batch_at,
            steps=round(stage.share * args.steps),
            learning_rate=stage.learning_rate,
            folder=folder / f"to_{resolution}",
        )
    return nnx.merge(graphs["student"], trainable["student"], frozen["student"])


def render(teacher: MobileStyleGAN, student: StyleGAN2) -> tuple[np.ndarray, ...]:
    """Returns the teacher's (averaged) and the student's images of held-out people."""

    @nnx.jit
    def make(teacher, student, z):
        w = codes(teacher, z, faces.PSI)
        aims = average(synthesise(teacher, w)[0], student.resolution)
        made, _ = synthesise(student, w)
        return jnp.clip(aims, -1, 1), jnp.clip(made, -1, 1)

    parts = [make(teacher, student, z) for z in np.split(faces.z_of(HELD_OUT), 20)]
    return tuple(np.concatenate(images) for images in zip(*parts, strict=True))


def measure(lpips: nnx.Module, aims: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Returns PSNR (dB) and LPIPS of images in [-1, 1]."""
    mse = ((made - aims) ** 2).mean((1, 2, 3))
    perceptual = nnx.jit(lambda lpips, a, b: lpips(a, b))(lpips, made, aims)
    return {
        "psnr_db": float((10 * np.log10(4 / mse)).mean()),
        "lpips": float(perceptual.mean()),
    }


def identity(teachers: Teachers, aims: np.ndarray, made: np.ndarray) -> dict:
    """Returns FaceNet's similarities, of small images enlarged in the same way."""

    def embed(images):
        large = (
            np.asarray(Image.fromarray(image).resize((256, 256), Image.BICUBIC))
            for image in to_uint8(images)
        )
        return unit(np.stack([teachers.facenet(image) for image in large]))

    theirs, mine = embed(aims), embed(made)
    same = np.sum(theirs * mine, axis=1)
    apart = ~np.eye(len(theirs), dtype=bool)
    # How often a student's face is nearer to its own original than to anyone else's.
    found = np.mean((mine @ theirs.T).argmax(1) == np.arange(len(theirs)))
    return {
        "identity_same": float(same.mean()),
        "identity_above_0.5": float((same > 0.5).mean()),
        "identity_different": float((theirs @ theirs.T)[apart].mean()),
        "identity_student_to_others": float((mine @ theirs.T)[apart].mean()),
        "identity_students_apart": float((mine @ mine.T)[apart].mean()),
        "nearest_is_self": float(found),
    }


def main():
    """Trains, measures and stores one student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=BUNDLE / "generator.npz")
    parser.add_argument("--resolution", type=int, choices=(16, 32, 64), default=64)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--facenet", type=Path)
    parser.add_argument("--dlib", type=Path)
    parser.add_argument("--out", type=Path, default=WORK / "student")
    args = parser.parse_args()
    folder = args.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    teacher = load_network(args.teacher)
    lpips = load_network(BUNDLE / "lpips_alex.npz")
    student = fresh(teacher, args.resolution)
    student = train(teacher, student, lpips, args, folder)
    aims, made = render(teacher, student)
    quality = measure(lpips, aims, made)
    if args.facenet and args.dlib:
        quality |= identity(Teachers(args.dlib, args.facenet), aims, made)
    print(json.dumps(quality, indent=2))
    save_grid(folder / "held_out.png", [aims[:12], made[:12]])
    about = {"teacher": args.teacher.name, "steps": args.steps, "held_out": quality}
    save_network(folder / "generator.npz", student, about=about)


if __name__ == "__main__":
    main()
