"""Distils a small identity encoder from one of two teachers.

    python -m distill.identity --teacher dlib
    python -m distill.identity --teacher facenet

The student, a narrow IR-SE network, learns to predict the teacher's embedding of a
person from images by the published and the distilled generator, with varied smiles,
poses, crops and colours. dlib's embeddings are first centred on their mean because
otherwise all pairs of people have a similarity above 0.8. Both teachers' embeddings are
reduced to their principal directions, which preserves the cosine similarities. The last
400 people are held out for evaluation.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distill import BUNDLE, WORK, faces, store
from distill.training import fit
from guide_jax.faces.photos import to_uint8
from guide_jax.models import arcface, resample
from guide_jax.models.network import jitted

HELD_OUT = 400
WIDTHS, UNITS, SIZE, DIM = (24, 24, 48, 96, 160), (2, 2, 2, 1), 64, 128


def targets(name: str) -> np.ndarray:
    """Returns the training targets, the teacher's reduced embeddings.

    Args:
        name: the teacher, "dlib" or "facenet".

    Returns:
        `[P, DIM]` float32, unit rows.
    """
    x = np.load(WORK / "teachers.npz")[name].astype(np.float64)
    if name == "dlib":
        x = x - x[:-HELD_OUT].mean(axis=0)
    _, _, directions = np.linalg.svd(x[:-HELD_OUT], full_matrices=False)
    x = x @ directions[:DIM].T
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


# A separate program, because when fused into the training step, XLA:CPU redraws the
# random numbers for every use.
@jax.jit
def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Crops faces at random around the identity crop and varies their colours.

    Args:
        images: faces `[N, H, W, 3]` in [-1, 1].
        key: random key.

    Returns:
        Crops `[N, SIZE, SIZE, 3]`.
    """
    n, height = images.shape[:2]
    keys = jax.random.split(key, 6)
    unit = height / resample.FACE_SIZE
    side = (resample.FACE_ROWS[1] - resample.FACE_ROWS[0]) * unit
    zoom = jnp.exp(jax.random.uniform(keys[0], (n, 1), minval=-0.08, maxval=0.08))
    scale = SIZE / side * zoom * jnp.ones((1, 2))
    first = [[resample.FACE_ROWS[0], resample.FACE_COLUMNS[0]]]
    corner = jnp.array(first, jnp.float32) * unit  # [1, 2]
    centre = (
        corner + side / 2 + jax.random.uniform(keys[1], (n, 2), minval=-4, maxval=4)
    )
    flip = jax.random.bernoulli(keys[2], 0.5, (n, 1, 1, 1))
    images = jnp.where(flip, images[:, :, ::-1], images)

    def cut(image, scale, centre):
        move = SIZE / 2 - centre * scale
        shape = (SIZE, SIZE, 3)
        return jax.image.scale_and_translate(
            image, shape, (0, 1), scale, move, "linear"
        )

    crops = jax.vmap(cut)(images, scale, centre)
    gain = jnp.exp(jax.random.uniform(keys[3], (n, 1, 1, 3), minval=-0.15, maxval=0.15))
    shift = jax.random.uniform(keys[4], (n, 1, 1, 3), minval=-0.15, maxval=0.15)
    noise = 0.02 * jax.random.normal(keys[5], crops.shape)
    return jnp.clip(crops * gain + shift + noise, -1, 1)


def measure(network: arcface.IRNet, images: np.ndarray, teacher: np.ndarray) -> dict:
    """Evaluates an encoder on a set of people.

    Args:
        network: the student.
        images: uint8 `[P, V, H, W, 3]`, V views of each person.
        teacher: the teacher's embeddings `[P, E]`.

    Returns:
        By name: AUC of same versus different person, similarity statistics, and
        agreement with the teacher.
    """
    embed = jitted(network, arcface.embed)
    views = [
        np.concatenate([embed(x / np.float32(127.5) - 1) for x in np.split(view, 8)])
        for view in images.swapaxes(0, 1)
    ]
    first, *edits = views
    same = np.concatenate([np.sum(first * edit, axis=1) for edit in edits])
    rows, columns = np.triu_indices(len(first), 1)
    different = (first @ first.T)[rows, columns]
    order = np.sort(different)
    auc = np.mean(np.searchsorted(order, same) / len(order))
    by_teacher = (teacher @ teacher.T)[rows, columns]
    return {
        "auc": float(auc),
        "same_mean": float(same.mean()),
        "same_5%": float(np.quantile(same, 0.05)),
        "different_mean": float(different.mean()),
        "different_95%": float(np.quantile(different, 0.95)),
        "correlation_with_teacher": float(np.corrcoef(different, by_teacher)[0, 1]),
        "cosine_to_teacher": float(np.sum(first * teacher, axis=1).mean()),
    }


def main():
    """Trains, evaluates and stores an identity encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=("dlib", "facenet"), required=True)
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    folder = (WORK / f"identity_{args.teacher}").absolute()
    folder.mkdir(parents=True, exist_ok=True)

    teacher = targets(args.teacher)
    published = faces.to_float(faces.load(WORK / "faces.zip", len(teacher)), 128)
    published = to_uint8(published)
    generated = np.load(WORK / "samples.npz")["images"]
    images = np.concatenate([generated, published[:, None]], axis=1)  # [P, V, ...]
    people, views = len(images) - HELD_OUT, images.shape[1]

    network = arcface.IRNet(UNITS, WIDTHS, True, DIM, SIZE, rngs=nnx.Rngs(0))
    network.train()
    graph, trainable, statistics = nnx.split(network, nnx.Param, ...)

    def loss(trainable, statistics, frozen, batch):
        network = nnx.merge(graph, trainable, statistics, copy=True)
        embeddings = network(batch["crops"])
        cosine = jnp.sum(embeddings * batch["teacher"], axis=1)
        # Similarities between people are matched too, because evaluation uses them.
        error = embeddings @ embeddings.T - batch["teacher"] @ batch["teacher"].T
        total = (1 - cosine).mean() + jnp.mean(error**2)
        terms = {"cosine": cosine.mean(), "pairs": jnp.mean(error**2) ** 0.5}
        return total, (nnx.state(network, nnx.Not(nnx.Param)), terms)

    def batch_at(step):
        rng = np.random.default_rng(step)
        rows = rng.choice(people, args.batch, replace=False)
        chosen = images[rows, rng.integers(views, size=args.batch)]
        crops = augment(chosen / np.float32(127.5) - 1, jax.random.key(step))
        return {"crops": crops, "teacher": teacher[rows]}

    trainable, statistics = fit(
        loss,
        trainable,
        statistics,
        {},
        batch_at,
        steps=args.steps,
        learning_rate=2e-3,
        folder=folder,
    )
    network = nnx.merge(graph, trainable, statistics)
    network.eval()
    quality = {
        "generated": measure(network, generated[people:], teacher[people:]),
        "seen in training": measure(network, generated[:HELD_OUT], teacher[:HELD_OUT]),
    }
    print(json.dumps(quality, indent=2))
    out = BUNDLE / f"identity_{args.teacher}.npz"
    about = {"teacher": args.teacher, "held_out": quality["generated"]}
    store(out, network, about)


if __name__ == "__main__":
    main()
