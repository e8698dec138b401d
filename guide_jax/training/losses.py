"""Latent target unlearning: local, adjacency-aware and global losses (section 3.3).

All of a step's pairs go through each network at once. A step's latents are
[w_u, w_u + delta ..., w_r ...] for the student and [w_target, w_target + delta ...,
w_r ...] for the source; the first 1 + N_a pairs are compared by features, LPIPS and
identity, the last N_g by LPIPS alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax import target
from guide_jax.models import arcface
from guide_jax.models.resample import average_pool


@dataclass(frozen=True)
class PairWeights:
    """Weights of the three comparisons of a pair, and of the loss that sums them."""

    mse: float = 1e-2
    lpips: float = 1.0
    identity: float = 0.1
    total: float = 1.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of a step's loss; the defaults are the published ones."""

    local: PairWeights = PairWeights()
    adjacency: PairWeights = PairWeights()
    global_: float = 1.0


@dataclass(frozen=True)
class Compute:
    """How the networks of a step are run.

    Attributes:
        dtype: that the generator's and LPIPS' convolutions run in, and that activations
            are kept in; None: the parameters'. Parameters, images and losses stay as
            they are.
        precision: of matrix products and convolutions, a name that
            `jax.default_matmul_precision` knows.
        lpips_resolution: side that images are averaged to before LPIPS sees them; it
            divides theirs. 0: they stay as they are.
    """

    dtype: str | None = None
    precision: str = "highest"
    lpips_resolution: int = 0


PLAIN = Compute()


class Latents(NamedTuple):
    """What student and source synthesise in one step, `[1 + N_a + N_g, L, D]`."""

    student: jax.Array
    source: jax.Array


class Judges(NamedTuple):
    """The frozen networks that compare images."""

    lpips: nnx.Module
    identity: nnx.Module


class Views(NamedTuple):
    """What the losses look at, for every latent of a step.

    Attributes:
        features: activations that the last output head reads, `[N, h, w, C]`.
        perceptual: LPIPS feature maps, before they are brought to unit length.
        embeddings: unit-norm identity embeddings of the first 1 + N_a, `[1 + N_a, E]`.
    """

    features: jax.Array
    perceptual: tuple[jax.Array, ...]
    embeddings: jax.Array


def step_latents(
    w_u: jax.Array,
    w_target: jax.Array,
    w_ra: jax.Array,
    alpha: jax.Array,
    w_rg: jax.Array,
) -> Latents:
    """Puts a step's latents together.

    Args:
        w_u: the person's code `[1, L, D]`.
        w_target: the target's `[1, L, D]`.
        w_ra: random latents for the adjacency loss `[N_a, L, D]`.
        alpha: lengths of the steps towards them `[N_a]`.
        w_rg: random latents for the global loss `[N_g, L, D]`.
    """
    delta = target.offsets(w_u, w_ra, alpha)
    return Latents(
        jnp.concatenate([w_u, w_u + delta, w_rg]),
        jnp.concatenate([w_target, w_target + delta, w_rg]),
    )


def view(
    synthesis: nnx.Module,
    w: jax.Array,
    judges: Judges,
    num_pairs: int,
    compute: Compute = PLAIN,
) -> Views:
    """Synthesises `w [N, L, D]` and looks at the result through the judges.

    Args:
        synthesis: the student's or the source's.
        w: the latents.
        judges: frozen networks.
        num_pairs: how many of the first images are embedded; 1 + N_a of a whole step.
        compute: how the networks are run.
    """
    # The names tell a profile's reader what a program's parts belong to.
    with jax.named_scope("synthesis"):
        images, activations = synthesis(w, dtype=compute.dtype)
    small = images
    if compute.lpips_resolution:
        small = average_pool(images, compute.lpips_resolution)
    with jax.named_scope("lpips"):
        perceptual = judges.lpips.raw_features(small, compute.dtype)
    embeddings = jnp.zeros((0, 1), images.dtype)
    if num_pairs:  # a device may have nobody's
        with jax.named_scope("identity"):
            embeddings = arcface.embed(judges.identity, images[:num_pairs])
    features = activations[synthesis.feature_name].astype(images.dtype)
    return Views(features, perceptual, embeddings)


class Differences(NamedTuple):
    """How far student and source are apart.

    Attributes:
        mse: of the features, `[1 + N_a]`.
        lpips: `[1 + N_a + N_g]`.
        identity: 1 - cosine, `[1 + N_a]`.
    """

    mse: jax.Array
    lpips: jax.Array
    identity: jax.Array


def differences(student: Views, source: Views, lpips_distance: Callable) -> Differences:
    """Compares what student and source made of a step's latents.

    Args:
        student: of `Latents.student`.
        source: of `Latents.source`; constant.
        lpips_distance: (perceptual, perceptual) -> `[N]`.
    """
    pairs = student.embeddings.shape[0]
    squares = (student.features[:pairs] - source.features[:pairs]) ** 2
    return Differences(
        jnp.mean(squares, axis=(1, 2, 3)),
        lpips_distance(student.perceptual, source.perceptual),
        1 - jnp.sum(student.embeddings * source.embeddings, axis=-1),
    )


def factors(weights: LossWeights, num_adjacent: int, num_global: int) -> Differences:
    """What each difference of a step counts for: the loss is their sum by these.

    Returns:
        `[1 + N_a]`, `[1 + N_a + N_g]` and `[1 + N_a]`, float32, on the host.
    """
    parts = [weights.local] + [weights.adjacency] * num_adjacent
    mse, lpips, identity = (
        [part.total * getattr(part, name) for part in parts]
        for name in ("mse", "lpips", "identity")
    )
    lpips += [weights.global_] * num_global
    return Differences(*(np.asarray(x, np.float32) for x in (mse, lpips, identity)))


def weighted_sum(found: Differences, by: Differences) -> jax.Array:
    """The loss of some pairs: their differences by what `factors` gives for them."""
    return sum(jnp.sum(x * factor) for x, factor in zip(found, by, strict=True))


def loss_terms(found: Differences, weights: LossWeights) -> dict[str, jax.Array]:
    """The loss of one step, and what it is made of.

    Args:
        found: the differences of all pairs.
        weights: of every part.

    Returns:
        By name: "mse", "lpips" `[N]`, "id" (for each pair), and the sums "local",
        "adjacency", "global" and "total", the loss.
    """
    pairs = len(found.identity)
    by = factors(weights, pairs - 1, len(found.lpips) - pairs)

    def part(rows: slice) -> jax.Array:
        return weighted_sum(*(Differences(*(x[rows] for x in y)) for y in (found, by)))

    # Beyond the pairs there are people who are compared by LPIPS alone.
    terms = {
        "local": part(slice(1)),
        "adjacency": part(slice(1, pairs)),
        "global": part(slice(pairs, None)),
    }
    mse, lpips, identity = found
    of_pairs = {"mse": mse, "lpips": lpips, "id": identity}
    return of_pairs | terms | {"total": sum(terms.values())}
