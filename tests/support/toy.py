"""A generator of patterns whose people are known exactly, and networks that fit it."""

import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from guide_jax.metrics.judges import Faces

SIDE, NUM_WS, DIM = 16, 2, 6
PERSON = 0  # the pattern that makes the person


def patterns():
    """Returns orthonormal patterns `[DIM + 1, SIDE * SIDE * 3]`; codes lack the last.

    They are smooth, so that blurring or cropping an image hardly changes it.
    """
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((DIM + 1, 4, 4, 3))
    large = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return np.linalg.qr(large.reshape(DIM + 1, -1).T)[0].T


class Mapping(nnx.Module):
    def __init__(self):
        self.w_avg = nnx.Variable(jnp.zeros(DIM))

    def __call__(self, z, psi=1.0):
        return jnp.broadcast_to(psi * z[:, None], (len(z), NUM_WS, DIM))


class Synthesis(nnx.Module):
    """Adds the patterns, weighted by the mean of a code's layers.

    With `excluded` = 1, no code has a positive weight on the person's pattern.
    """

    feature_name = "image"

    def __init__(self, excluded=0.0):
        self.patterns = nnx.Param(jnp.asarray(patterns()[:DIM], jnp.float32))
        self.excluded = nnx.Variable(jnp.asarray(excluded))

    def __call__(self, w, dtype=None):
        weights = w.mean(axis=1)
        own = jnp.maximum(weights[:, PERSON], 0)
        weights = weights.at[:, PERSON].add(-2 * self.excluded[...] * own)
        flat = jnp.tanh(weights @ self.patterns[...])
        images = flat.reshape(len(w), SIDE, SIDE, 3)
        return images, {"image": images}


class Generator(nnx.Module):
    kind = "toy"
    resolution, z_dim, w_dim, num_ws, feature_name = SIDE, DIM, DIM, NUM_WS, "image"

    def __init__(self, excluded=0.0):
        self.mapping, self.synthesis = Mapping(), Synthesis(excluded)


class Encoder(nnx.Module):
    """Inverts the generator that excludes nobody."""

    num_ws, w_dim = 1, DIM

    def __init__(self):
        self.patterns = nnx.Param(jnp.asarray(patterns()[:DIM], jnp.float32))

    def __call__(self, photo):
        flat = jnp.arctanh(photo.reshape(len(photo), -1).clip(-0.99, 0.99))
        return (flat @ self.patterns[...].T)[:, None]


def judge(images):
    """Embeds an image by the weights of its patterns, also of the one codes lack."""
    flat = np.arctanh(np.asarray(images).reshape(len(images), -1).clip(-0.99, 0.99))
    weights = flat @ patterns().T
    length = np.linalg.norm(weights, axis=1, keepdims=True)
    embeddings = (weights / np.maximum(length, 1e-6)).astype(np.float32)
    return Faces(embeddings, np.ones(len(images), bool))


def image(weights):
    """Returns the image `[1, SIDE, SIDE, 3]` with these weights `[DIM + 1]`."""
    flat = np.tanh(np.asarray(weights) @ patterns())
    return flat.reshape(1, SIDE, SIDE, 3).astype(np.float32)


def networks():
    """Returns the networks of a run with this generator."""
    lpips, identity = tiny.loss_networks()
    return tiny.networks(
        generator=Generator(), encoder=Encoder(), lpips=lpips, identity=identity
    )
