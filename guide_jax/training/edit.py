"""Forgets a person in closed form: edits the layers that read codes, without training.

A layer that reads a style vector is affine in it, so a generator that shows for a code
`w` what it showed for `w + (w - w_avg) @ changes` differs in these layers' weights only
(`edited`). The changes are the ridge regression, in each of the L styles, of the fold's
targets on its codes. Being linear, they are no fold: with a replacement, a code's
component is taken away wherever it lies, and random people move by a part of theirs.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.config_types import Fold
from guide_jax.models.generator import Generator, make_mapping
from guide_jax.target import FoldMap
from guide_jax.training.fold import Pairs, draw_pairs

CROWD = 2000  # random people among whom codes are drawn
OWN, NEAR, OTHERS = 500, 1500, 3000  # codes in the regression, of each kind
OWN_WEIGHT = 0.3  # of one of the person's codes, relative to one near the threshold
RIDGE = 0.01  # relative to the codes' mean variance


# Compiled, because its intermediate results would take a gigabyte otherwise.
_draw_pairs = jax.jit(draw_pairs, static_argnames="settings")


def edit(
    generator: Generator,
    settings: Fold,
    psi: float,
    w_u: np.ndarray,
    w_target: np.ndarray,
    fold_map: FoldMap,
    key: jax.Array,
) -> Any:
    """Returns a copy of the synthesis network that has forgotten the person.

    Args:
        generator: the original, which is not changed.
        settings: the fold's.
        psi: truncation of the random people.
        w_u: codes to forget `[P, L, D]`.
        w_target: their targets `[P, L, D]`.
        fold_map: the person's.
        key: random key.
    """
    key_people, key_pairs = jax.random.split(key)
    z = jax.random.normal(key_people, (CROWD, generator.z_dim))
    people = np.asarray(make_mapping(generator, psi)(z))
    w_avg = np.asarray(generator.mapping.w_avg[...])
    pairs, weights = regression_pairs(
        people, w_avg, settings, w_u, w_target, fold_map, key_pairs
    )
    return edited(generator.synthesis, linear_changes(pairs, weights, w_avg), w_avg)


def regression_pairs(
    people: np.ndarray,
    w_avg: np.ndarray,
    settings: Fold,
    w_u: np.ndarray,
    w_target: np.ndarray,
    fold_map: FoldMap,
    key: jax.Array,
) -> tuple[Pairs, np.ndarray]:
    """Draws the codes that the changes are computed from.

    Args:
        people: random people `[M, L, D]`.
        w_avg: mean code `[D]`.
        settings: the fold's.
        w_u: codes to forget `[P, L, D]`.
        w_target: their targets `[P, L, D]`.
        fold_map: the person's.
        key: random key.

    Returns:
        The pairs, N in all, and their weights `[N]`.
    """
    rows = np.arange(max(OWN, len(w_u))) % len(w_u)
    many = replace(settings, adjacent=NEAR, others=OTHERS)
    pairs = _draw_pairs(
        jnp.asarray(people),
        jnp.asarray(w_avg),
        many,
        jnp.asarray(w_u[rows]),
        jnp.asarray(w_target[rows]),
        fold_map,
        key,
    )
    near = settings.edit_strength
    counts = len(rows), NEAR, OTHERS
    weights = np.repeat([OWN_WEIGHT * near, near, 1.0], counts)
    return pairs, weights


def linear_changes(pairs: Pairs, weights: np.ndarray, w_avg: np.ndarray) -> np.ndarray:
    """Returns `changes` `[L, D, D]` with `codes + (codes - w_avg) @ changes ~ targets`.

    Args:
        pairs: codes and targets `[N, L, D]`.
        weights: of each pair's squared error, `[N]`.
        w_avg: mean code `[D]`.
    """
    codes, targets = (np.asarray(x) for x in pairs)
    changes = []
    for layer in range(codes.shape[1]):
        x = np.float64(codes[:, layer]) - w_avg
        weighted = x * weights[:, None]
        gram = weighted.T @ x
        ridge = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        moved = np.float64(targets[:, layer]) - codes[:, layer]
        changes.append(np.linalg.solve(gram + ridge, weighted.T @ moved))
    return np.stack(changes)


def edited(synthesis: Any, changes: np.ndarray, w_avg: np.ndarray) -> Any:
    """Returns a copy of a synthesis network that reads codes as if they were changed.

    Args:
        synthesis: a generator's synthesis network.
        changes: `[L, D, D]`; the copy shows for a code w what `synthesis` shows for
            `w + (w - w_avg) @ changes`.
        w_avg: mean code `[D]`.
    """
    copy = nnx.clone(synthesis)
    mean = jnp.asarray(w_avg, jnp.float32)[None]
    with jax.default_matmul_precision("highest"):
        for style, layer in copy.affine_layers():
            weight = layer.weight[...]
            before = layer(mean)
            change = jnp.asarray(changes[style], weight.dtype) @ weight
            layer.weight[...] = weight + change
            shift = (before - layer(mean)).reshape(layer.bias[...].shape)
            layer.bias[...] = layer.bias[...] + shift
    return copy
