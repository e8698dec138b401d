"""Distils a small StyleGAN2 from the bundled MobileStyleGAN.

    python -m distill.student --facenet WHEEL --dlib SDIST

The student shares the teacher's mapping network, hence its W space, and has a StyleGAN2
synthesis network. It trains on freshly drawn codes in coarse-to-fine stages: up to
16 px, where an image costs a quarter of a full one, then up to 32 and 64 px. In every
stage it matches the principal components of the teacher's activations, through learned
1x1 projections, and the image at every level of the skip pyramid.

Each stage is checkpointed, and an interrupted stage resumes. `--facenet` and `--dlib`,
the packages used by `distill.teachers`, measure whether its faces show the teacher's
people: the identity similarity has to exceed 0.5, the value that separates people here.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from distill import BUNDLE, WORK, faces, store
from distill.images import average, image_loss, likeness, save_grid
from distill.teachers import Teachers, unit
from distill.training import fit
from guide_jax.faces.photos import to_uint8
from guide_jax.models.mobilestylegan import MobileStyleGAN
from guide_jax.models.network import fill, flat_leaves, jitted
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.network_file import load_network

WIDTHS = {4: 512, 8: 176, 16: 192, 32: 96, 64: 32}  # channels by resolution
HELD_OUT = 1_000_000 + np.arange(200)  # seeds of the people used for evaluation
STUDIED = 256  # faces from which the teacher's principal directions are computed
PSI = (0.5, 1.0)  # range of the truncation psi in training
# By the stage's resolution: batch size, steps as a multiple of --steps, learning rate.
STAGES = {16: (16, 1.0, 1e-2), 32: (8, 0.75, 1e-2), 64: (8, 0.6, 5e-3)}


def fresh(teacher: MobileStyleGAN, resolution: int) -> StyleGAN2:
    """Returns a student that starts with the teacher's mapping network and 4 px block.

    The teacher's first convolution equals StyleGAN2's except for the demodulation. The
    demodulation factor hardly depends on w, so its value at `w_avg` is used as a fixed
    scale per channel, including the bias.
    """
    student = StyleGAN2(
        resolution=resolution,
        channels=tuple(n for size, n in WIDTHS.items() if size <= resolution),
        z_dim=teacher.z_dim,
        w_dim=teacher.w_dim,
        mapping_layers=teacher.mapping_layers,
        rngs=nnx.Rngs(0),
    )
    old, new = flat_leaves(teacher), flat_leaves(student)
    new |= {path: leaf for path, leaf in old.items() if path.startswith("mapping.")}
    stem = {
        name: old[f"synthesis.b4.{name}"]
        for name in ("affine.weight", "affine.bias", "weight", "bias")
    }
    style = old["mapping.w_avg"] @ stem["affine.weight"] + stem["affine.bias"]
    energy = style**2 @ (stem["weight"] ** 2).sum((0, 1))
    stem["bias"] = stem["bias"] / (teacher.synthesis.b4.scale * jnp.sqrt(energy))
    stem["affine.weight"] = stem["affine.weight"] * teacher.w_dim**0.5
    new |= {f"synthesis.b4.conv1.{name}": leaf for name, leaf in stem.items()}
    new["synthesis.b4.const"] = old["synthesis.b4.const"]
    return fill(student, new)


def codes(network: nnx.Module, z: jax.Array, psi: jax.Array | float) -> jax.Array:
    """Maps z `[N, Z]` to truncated w `[N, D]`; psi is `[N, 1]` or a scalar."""
    w_avg = network.mapping.w_avg[...][None]
    return w_avg + psi * (network.mapping(z)[:, 0] - w_avg)


def synthesise(network: nnx.Module, w: jax.Array) -> tuple[jax.Array, dict]:
    """Runs a generator with the same w `[N, D]` for all layers."""
    return network.synthesis(jnp.repeat(w[:, None], network.num_ws, axis=1))


def study(teacher: MobileStyleGAN, student: StyleGAN2) -> dict:
    """Computes the principal directions of the teacher's activations.

    Returns:
        By resolution: `directions` `[C, K]` and `origin` `[K]`, which map activations
        to their K principal components, where K is the student's width (channels are
        first scaled to variance 1; the components' variances sum to K); and `colours`
        `[C + 1, 3]`, the least-squares linear map from activations to the averaged
        image.
    """
    sizes = student.synthesis.resolutions

    def make(teacher, z):
        image, activations = synthesise(teacher, codes(teacher, z, sum(PSI) / 2))
        return {s: (average(image, s), activations[f"b{s}.x"]) for s in sizes}

    make = jitted(teacher, make)
    moments = dict.fromkeys(sizes, 0.0)
    for z in np.split(faces.z_of(np.arange(STUDIED)), STUDIED // 16):
        for size, (image, x) in make(z).items():
            rows = np.concatenate([x, np.ones_like(x[..., :1]), image], axis=-1)
            rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
            moments[size] = moments[size] + rows.T @ rows / (len(rows) * STUDIED // 16)
    return {size: _directions(moments[size], WIDTHS[size]) for size in sizes}


def _directions(moments: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Computes an entry of `study` from the second moments of [x, 1, image]."""
    squares, mean = moments[:-4, :-4], moments[:-4, -4]
    covariance = squares - np.outer(mean, mean)
    scale = np.sqrt(np.diag(covariance)) + 1e-6
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    values, vectors = values[-count:], vectors[:, -count:]
    directions = vectors / scale[:, None] * np.sqrt(count / values.sum())
    known = moments[:-3, :-3] + 1e-4 * np.eye(len(moments) - 3)
    entry = {
        "directions": directions,
        "origin": mean @ directions,
        "colours": np.linalg.solve(known, moments[:-3, -3:]),
    }
    return {name: value.astype(np.float32) for name, value in entry.items()}


def targets(
    teacher: MobileStyleGAN, views: dict, w: jax.Array, resolution: int, whole: bool
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Returns the teacher's image at `resolution` and its components by size.

    Args:
        teacher: the teacher.
        views: from `study`.
        w: codes `[N, D]`.
        resolution: side of the image in pixels.
        whole: whether to average down the teacher's full image. If not, the image is a
            linear map of the activations at `resolution`, and `jax.jit` drops all
            layers above them.
    """
    image, activations = synthesise(teacher, w)
    components = {
        size: activations[f"b{size}.x"] @ view["directions"]
        - view["origin"][None, None, None]
        for size, view in views.items()
        if size <= resolution
    }
    if whole:
        return average(image, resolution), components
    colours = views[resolution]["colours"]
    linear = activations[f"b{resolution}.x"] @ colours[:-1]
    return linear + colours[-1][None, None, None], components


def stage_loss(graphs: dict, resolution: int, whole: bool):
    """Returns a stage's objective, in the form that `fit` expects."""

    def loss(trainable, views, frozen, batch):
        teacher = nnx.merge(graphs["teacher"], frozen["teacher"])
        student = nnx.merge(graphs["student"], trainable["student"], frozen["student"])
        lpips = nnx.merge(graphs["lpips"], frozen["lpips"])
        w = codes(teacher, batch["z"], batch["psi"])
        reference, components = targets(teacher, views, w, resolution, whole)
        _, activations = synthesise(student, w)
        terms = {}
        for size, component in components.items():
            reader = trainable["readers"][size]
            read = activations[f"b{size}.x"] @ reader["weight"]
            read = read + reader["bias"][None, None, None]
            # 1 if the reader predicts the mean, 0 if it is exact.
            terms[f"x{size}"] = jnp.mean((read - component) ** 2)
        total = sum(terms.values()) / len(terms)
        for size in WIDTHS:
            if size < resolution:
                difference = activations[f"b{size}.img"] - average(reference, size)
                total += jnp.abs(difference).mean()
        # The images of earlier stages are too small for LPIPS.
        judge = lpips if whole else lambda a, b: jnp.zeros(())
        generated = activations[f"b{resolution}.img"]
        image_total, image_terms = image_loss(generated, reference, judge)
        return total + 2 * image_total, (views, terms | image_terms)

    return loss


def train(
    teacher: MobileStyleGAN, student: StyleGAN2, steps: int, folder: Path
) -> StyleGAN2:
    """Trains the student in all stages and returns it."""

    def is_trained(path, leaf):
        return path[0] == "synthesis" and isinstance(leaf, nnx.Param)

    graphs, frozen = {}, {}
    graphs["teacher"], frozen["teacher"] = nnx.split(teacher)
    lpips = load_network(BUNDLE / "lpips_alex.npz")
    graphs["lpips"], frozen["lpips"] = nnx.split(lpips)
    graphs["student"], leaves, frozen["student"] = nnx.split(student, is_trained, ...)
    initial = jax.nn.initializers.lecun_normal()
    readers = {
        size: {"weight": initial(jax.random.key(size), (n, n)), "bias": jnp.zeros(n)}
        for size, n in WIDTHS.items()
    }
    trainable = {"student": leaves, "readers": readers}
    # These are part of the checkpoint because the signs of principal directions are
    # arbitrary, and a resumed run must keep the signs that its readers learned.
    views = study(teacher, student)
    for resolution, (batch, share, learning_rate) in STAGES.items():
        if resolution > student.resolution:
            break

        def batch_at(step, batch=batch, resolution=resolution):
            rng = np.random.default_rng((resolution, step))
            z = rng.standard_normal((batch, teacher.z_dim), np.float32)
            return {"z": z, "psi": rng.uniform(*PSI, (batch, 1)).astype("f4")}

        trainable, views = fit(
            stage_loss(graphs, resolution, resolution == student.resolution),
            trainable,
            views,
            frozen,
            batch_at,
            steps=round(share * steps),
            learning_rate=learning_rate,
            folder=folder / f"to_{resolution}",
        )
    return nnx.merge(graphs["student"], trainable["student"], frozen["student"])


def render(teacher: MobileStyleGAN, student: StyleGAN2) -> tuple[np.ndarray, ...]:
    """Returns the teacher's (averaged) and the student's images of held-out people."""

    def make(networks, z):
        teacher, student = networks
        w = codes(teacher, z, faces.PSI)
        references = average(synthesise(teacher, w)[0], student.resolution)
        generated, _ = synthesise(student, w)
        return jnp.clip(references, -1, 1), jnp.clip(generated, -1, 1)

    make = jitted((teacher, student), make)
    parts = [make(z) for z in np.split(faces.z_of(HELD_OUT), 20)]
    return tuple(np.concatenate(images) for images in zip(*parts, strict=True))


def identity(teachers: Teachers, references: np.ndarray, generated: np.ndarray) -> dict:
    """Computes FaceNet similarities, with both sets of images enlarged the same way.

    Args:
        teachers: provides FaceNet.
        references: the teacher's images `[N, H, W, 3]`.
        generated: the student's images of the same people.

    Returns:
        Similarity statistics by name.
    """

    def embed(images):
        small = map(Image.fromarray, to_uint8(images))
        large = (np.asarray(image.resize((256, 256))) for image in small)  # bicubic
        return unit(np.stack([teachers.facenet(image)[0] for image in large]))

    theirs, mine = embed(references), embed(generated)
    similar, apart = mine @ theirs.T, ~np.eye(len(theirs), dtype=bool)
    same = np.diag(similar)
    return {
        "same": float(same.mean()),
        "same_above_0.5": float((same > 0.5).mean()),
        "student_to_others": float(similar[apart].mean()),
        "different_teachers": float((theirs @ theirs.T)[apart].mean()),
        "nearest_is_self": float((similar.max(axis=1) == same).mean()),
    }


def main():
    """Trains, evaluates and stores a student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--teacher", type=Path, default=BUNDLE / "mobilestylegan_128.npz"
    )
    parser.add_argument("--resolution", type=int, choices=(32, 64), default=64)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--facenet", type=Path)
    parser.add_argument("--dlib", type=Path)
    parser.add_argument("--out", type=Path, default=BUNDLE / "stylegan2_64.npz")
    args = parser.parse_args()
    folder = (WORK / "student").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    teacher = load_network(args.teacher)
    if teacher.resolution < 2 * args.resolution:
        parser.error(
            f"the teacher's resolution is {teacher.resolution} px, but at least"
            f" {2 * args.resolution} px are needed"
        )
    student = fresh(teacher, args.resolution)
    student = train(teacher, student, args.steps, folder)
    references, generated = render(teacher, student)
    quality = likeness(load_network(BUNDLE / "lpips_alex.npz"), references, generated)
    if args.facenet and args.dlib:
        teachers = Teachers(args.dlib, args.facenet)
        quality["identity"] = identity(teachers, references, generated)
    print(json.dumps(quality, indent=2))
    save_grid(folder / "held_out.png", [references[:12], generated[:12]])
    about = {"teacher": args.teacher.name, "steps": args.steps, "held_out": quality}
    store(args.out, student, about)


if __name__ == "__main__":
    main()
