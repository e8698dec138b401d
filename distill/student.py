"""Distils a StyleGAN2 of our own making from the demo's generator.

    python -m distill.student --facenet WHEEL --dlib SDIST

The student has the teacher's mapping network, so the same w, and a synthesis network of
StyleGAN2's kind. It learns from codes drawn without end, coarse to fine: up to 16 px,
where an image costs a quarter of a whole one, then up to 32 and 64 px. In every stage
it copies the main directions of the teacher's activations, through 1x1 projections
learned beside it, and the image at every step of the skip pyramid.

Every stage is checkpointed and goes on where it stopped. `--facenet` and `--dlib`, the
packages of `distill.teachers`, measure whether its faces are the teacher's people: the
identity similarity has to be above the 0.5 that separates people here.
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
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.locate import jitted
from guide_jax.storage.network_file import fill, flat_leaves, load_network

WIDTHS = {4: 512, 8: 176, 16: 192, 32: 96, 64: 32}  # channels by resolution
HELD_OUT = 1_000_000 + np.arange(200)  # seeds of the people measured
STUDIED = 256  # faces from which the teacher's main directions are read
PSI = (0.5, 1.0)  # range of the truncation in training
# By the size a stage works up to: batch, part of --steps (times), learning rate.
STAGES = {16: (16, 1.0, 1e-2), 32: (8, 0.75, 1e-2), 64: (8, 0.6, 5e-3)}


def fresh(teacher: MobileStyleGAN, resolution: int) -> StyleGAN2:
    """Returns a student that begins as the teacher does: mapping network and 4 px.

    The teacher's first convolution is StyleGAN2's, but for the demodulation. That
    changes little with w; its value at `w_avg` scales a channel, bias and all.
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
    """Maps z `[N, Z]` to one truncated w each, `[N, D]`; psi `[N, 1]` or a number."""
    w_avg = network.mapping.w_avg[...]
    return w_avg + psi * (network.mapping(z)[:, 0] - w_avg)


def synthesise(network: nnx.Module, w: jax.Array) -> tuple[jax.Array, dict]:
    """Runs a generator on one w `[N, D]` for all its layers."""
    return network.synthesis(jnp.repeat(w[:, None], network.num_ws, axis=1))


def study(teacher: MobileStyleGAN, student: StyleGAN2) -> dict:
    """Finds what to read from the teacher's activations.

    Returns:
        By resolution: `directions` `[C, K]` and `origin` `[K]`, which turn activations
        into their K main components (of channels brought to variance 1; K is the
        student's width; the variances add up to K), and `colours` `[C + 1, 3]`, the
        linear map to the averaged image that fits best.
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
    """Returns an entry of `study` from the second moments of [x, 1, image]."""
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

    def loss(trainable, views, frozen, batch):
        teacher = nnx.merge(graphs["teacher"], frozen["teacher"])
        student = nnx.merge(graphs["student"], trainable["student"], frozen["student"])
        lpips = nnx.merge(graphs["lpips"], frozen["lpips"])
        w = codes(teacher, batch["z"], batch["psi"])
        aim, components = targets(teacher, views, w, resolution, whole)
        _, activations = synthesise(student, w)
        terms = {}
        for size, component in components.items():
            reader = trainable["readers"][size]
            read = activations[f"b{size}.x"] @ reader["weight"] + reader["bias"]
            # 1 when all is guessed as the mean, 0 when all is known.
            terms[f"x{size}"] = jnp.mean((read - component) ** 2)
        total = sum(terms.values()) / len(terms)
        for size in WIDTHS:
            if size < resolution:
                difference = activations[f"b{size}.img"] - average(aim, size)
                total += jnp.abs(difference).mean()
        # Smaller images are too small for LPIPS.
        judge = lpips if whole else lambda a, b: jnp.zeros(())
        made = activations[f"b{resolution}.img"]
        image_total, image_terms = image_loss(made, aim, judge)
        return total + 2 * image_total, (views, terms | image_terms)

    return loss


def train(
    teacher: MobileStyleGAN, student: StyleGAN2, steps: int, folder: Path
) -> StyleGAN2:
    """Takes the student through the stages; returns it trained."""

    def is_trained(path, leaf):
        return path[0] == "synthesis" and isinstance(leaf, nnx.Param)

    graphs, frozen = {}, {}
    graphs["teacher"], frozen["teacher"] = nnx.split(teacher)
    lpips = load_network(BUNDLE / "lpips_alex.npz")
    graphs["lpips"], frozen["lpips"] = nnx.split(lpips)
    graphs["student"], made, frozen["student"] = nnx.split(student, is_trained, ...)
    initial = jax.nn.initializers.lecun_normal()
    readers = {
        size: {"weight": initial(jax.random.key(size), (n, n)), "bias": jnp.zeros(n)}
        for size, n in WIDTHS.items()
    }
    trainable = {"student": made, "readers": readers}
    # They go into the checkpoint: main directions have signs by chance, and a resumed
    # run must keep those that its readers learned.
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
        aims = average(synthesise(teacher, w)[0], student.resolution)
        made, _ = synthesise(student, w)
        return jnp.clip(aims, -1, 1), jnp.clip(made, -1, 1)

    make = jitted((teacher, student), make)
    parts = [make(z) for z in np.split(faces.z_of(HELD_OUT), 20)]
    return tuple(np.concatenate(images) for images in zip(*parts, strict=True))


def identity(teachers: Teachers, aims: np.ndarray, made: np.ndarray) -> dict:
    """Returns FaceNet's similarities, of small images enlarged in the same way."""

    def embed(images):
        small = map(Image.fromarray, to_uint8(images))
        large = (np.asarray(image.resize((256, 256))) for image in small)  # bicubic
        return unit(np.stack([teachers.facenet(image)[0] for image in large]))

    theirs, mine = embed(aims), embed(made)
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
    """Trains, measures and stores one student."""
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
        parser.error(f"the teacher makes {teacher.resolution} px only")
    student = fresh(teacher, args.resolution)
    student = train(teacher, student, args.steps, folder)
    aims, made = render(teacher, student)
    quality = likeness(load_network(BUNDLE / "lpips_alex.npz"), aims, made)
    if args.facenet and args.dlib:
        teachers = Teachers(args.dlib, args.facenet)
        quality["identity"] = identity(teachers, aims, made)
    print(json.dumps(quality, indent=2))
    save_grid(folder / "held_out.png", [aims[:12], made[:12]])
    about = {"teacher": args.teacher.name, "steps": args.steps, "held_out": quality}
    store(args.out, student, about)


if __name__ == "__main__":
    main()
