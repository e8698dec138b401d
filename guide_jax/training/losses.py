"""Latent target unlearning: local, adjacency and global losses (section 3.3).

All pairs of a step pass through each network in one batch. For P codes to forget, the
rows are [own (P), adjacent (P * N_a), random (N_g)]: the student synthesises
[w_u, w_u + delta, w_r] and the source [w_target, w_target + delta, w_r]. Own and
adjacent pairs are compared by features, LPIPS and identity, random ones by LPIPS alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from guide_jax import target
from guide_jax.config_types import Compute, LossWeights
from guide_jax.models import arcface
from guide_jax.models.generator import synthesize
from guide_jax.models.resample import average_pool
from guide_jax.models.shapes import Array

FLOAT32 = Compute()


class StepLatents(NamedTuple):
    """The latents of one step, and the view that both generators show them from.

    Attributes:
        student: `[P + P * N_a + N_g, L, D]`.
        source: the same.
        view: camera arguments, one row for each latent; empty in 2D.
    """

    student: Float[Array, "N L D"]
    source: Float[Array, "N L D"]
    view: dict[str, Array]


class LossNetworks(NamedTuple):
    """The frozen networks in the loss, which never include a judge."""

    lpips: Any
    identity: Any


class LossInputs(NamedTuple):
    """What the losses compare: arrays computed from all latents of a step.

    Attributes:
        features: activations that the last output head reads, or a 3D generator's
            planes, `[N, h, w, C]`.
        lpips_maps: LPIPS feature maps, before normalisation to unit length.
        embeddings: unit-norm identity embeddings of the own and adjacent rows,
            `[P + P * N_a, E]`.
    """

    features: Float[Array, "N h w C"]
    lpips_maps: tuple[Array, ...]
    embeddings: Float[Array, "M E"]


class PairTerms(NamedTuple):
    """The loss terms of each pair, or the weights of these terms.

    Attributes:
        mse: mean squared difference of the features, `[P + P * N_a]`.
        lpips: LPIPS, `[P + P * N_a + N_g]`.
        identity: 1 - cosine similarity, `[P + P * N_a]`.
    """

    mse: Float[Array, " M"]
    lpips: Float[Array, " N"]
    identity: Float[Array, " M"]


def step_latents(
    w_u: Float[Array, "P L D"],
    w_target: Float[Array, "P L D"],
    w_ra: Float[Array, "A L D"],
    alpha: Float[Array, " A"],
    w_rg: Float[Array, "G L D"],
    view: dict[str, Array] | None = None,
) -> StepLatents:
    """Assembles the latents of a step.

    Args:
        w_u: codes to forget `[P, L, D]`.
        w_target: their targets `[P, L, D]`.
        w_ra: random latents for the adjacency loss `[P * N_a, L, D]`: N_a latents for
            the first code, then for the next, and so on.
        alpha: lengths of the offsets towards `w_ra`, `[P * N_a]`.
        w_rg: random latents for the global loss `[N_g, L, D]`.
        view: camera arguments, one row for each latent; None in 2D.
    """
    count = len(w_ra) // len(w_u)
    near_u, near_target = (jnp.repeat(w, count, axis=0) for w in (w_u, w_target))
    delta = target.offsets(near_u, w_ra, alpha)
    return StepLatents(
        jnp.concatenate([w_u, near_u + delta, w_rg]),
        jnp.concatenate([w_target, near_target + delta, w_rg]),
        view or {},
    )


def loss_inputs(
    synthesis: nnx.Module,
    w: Float[Array, "N L D"],
    networks: LossNetworks,
    num_pairs: int,
    compute: Compute = FLOAT32,
    view: dict[str, Array] | None = None,
) -> LossInputs:
    """Generates images of latents and computes what the losses compare.

    Args:
        synthesis: the student's or the source's synthesis network.
        w: the latents `[N, L, D]`.
        networks: LPIPS and the identity encoder.
        num_pairs: number of own and adjacent rows, which come first.
        compute: numerical settings (dtype, LPIPS resolution).
        view: camera arguments, one row for each latent; None in 2D.
    """
    # The scopes label the parts of the program in a profile.
    with jax.named_scope("synthesis"):
        made = synthesize(synthesis, w, dtype=compute.dtype, **(view or {}))
    images = made.images
    small = images
    if compute.lpips_resolution:
        small = average_pool(images, compute.lpips_resolution)
    with jax.named_scope("lpips"):
        lpips_maps = networks.lpips.raw_features(small, compute.dtype)
    embeddings = jnp.zeros((0, 1), images.dtype)
    if num_pairs:  # a device may hold random rows only
        with jax.named_scope("identity"):
            embeddings = arcface.embed(networks.identity, images[:num_pairs])
    return LossInputs(made.features.astype(images.dtype), lpips_maps, embeddings)


def pair_terms(
    student: LossInputs, source: LossInputs, lpips_distance: Callable
) -> PairTerms:
    """Compares student and source, pair by pair.

    Args:
        student: the student's, from `StepLatents.student`.
        source: the source's, from `StepLatents.source`; a constant.
        lpips_distance: a function (maps, maps) -> LPIPS `[N]`.
    """
    pairs = student.embeddings.shape[0]
    squares = (student.features[:pairs] - source.features[:pairs]) ** 2
    return PairTerms(
        jnp.mean(squares, axis=(1, 2, 3)),
        lpips_distance(student.lpips_maps, source.lpips_maps),
        1 - jnp.sum(student.embeddings * source.embeddings, axis=-1),
    )


def term_weights(
    weights: LossWeights, num_adjacent: int, num_global: int, num_codes: int = 1
) -> PairTerms:
    """Returns the weight of each pair's terms; the loss is their weighted sum.

    Own and adjacent pairs are averaged over the P codes, so that the weight of the
    random rows does not depend on P.

    Args:
        weights: the losses' weights.
        num_adjacent: N_a.
        num_global: N_g.
        num_codes: P.

    Returns:
        float32 arrays on the host.
    """
    parts = [weights.local] * num_codes
    parts += [weights.adjacency] * (num_codes * num_adjacent)
    mse, lpips, identity = (
        [part.total * getattr(part, name) / num_codes for part in parts]
        for name in ("mse", "lpips", "identity")
    )
    lpips += [weights.global_] * num_global
    arrays: Any = (np.asarray(x, np.float32) for x in (mse, lpips, identity))
    return PairTerms(*arrays)


def weighted_sum(values: PairTerms, weights: PairTerms) -> Float[Array, ""]:
    """Returns the loss of some pairs, the weighted sum of their terms."""
    sums = [jnp.sum(x * w) for x, w in zip(values, weights, strict=True)]
    return sum(sums[1:], start=sums[0])


def loss_terms(
    values: PairTerms, weights: LossWeights, num_codes: int = 1
) -> dict[str, Float[Array, "..."]]:
    """Returns the loss of one step and its parts.

    Args:
        values: the terms of all pairs.
        weights: the losses' weights.
        num_codes: P.

    Returns:
        Terms by name: the arrays "mse", "lpips" and "id" with a value for each pair,
        and the scalars "local", "adjacency", "global" and "total" (the loss).
    """
    pairs = len(values.identity)
    num_global = len(values.lpips) - pairs
    by = term_weights(weights, pairs // num_codes - 1, num_global, num_codes)

    def part(rows: slice) -> Float[Array, ""]:
        return weighted_sum(*(PairTerms(*(x[rows] for x in y)) for y in (values, by)))

    # Only `lpips` has rows beyond `pairs`, for the random people.
    terms = {
        "local": part(slice(num_codes)),
        "adjacency": part(slice(num_codes, pairs)),
        "global": part(slice(pairs, None)),
    }
    of_pairs = {"mse": values.mse, "lpips": values.lpips, "id": values.identity}
    total = terms["local"] + terms["adjacency"] + terms["global"]
    return of_pairs | terms | {"total": total}
