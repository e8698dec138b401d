"""One step of unlearning by the fold, which replaces the paper's losses.

The student learns to show for each code what the source shows for the code's target
(`target.fold`). It learns this from the activations up to a resolution that holds the
identity, without LPIPS, an identity encoder or the large layers, so that a step can
take many codes:

- own: the person's codes, with random people's offsets added;
- adjacent: random people moved along the person's direction, who come to look like the
  person, in other poses and light;
- others: random people. Half of them are moved to just below the threshold, where the
  student confuses them with the person most easily.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax import target
from guide_jax.config_types import Fold
from guide_jax.training.context import StepContext, Tree
from guide_jax.training.step import update

POOL = 64  # random people from whom a step's codes are mixed
OFFSET = 0.8  # largest offset added to the person's codes, in random people's own
NEAREST = 0.85  # adjacent codes' smallest component, in thresholds


class Pairs(NamedTuple):
    """A step's codes and their targets, `[N, L, D]`: own, adjacent, others."""

    codes: jax.Array
    targets: jax.Array


def mixed_people(people: jax.Array, count: int, key: jax.Array) -> jax.Array:
    """Draws random people's codes, half of them with other people's styles mixed in.

    Codes of photos differ from layer to layer, like these.

    Args:
        people: random people `[M, L, D]`.
        count: N, the number of codes.
        key: random key.

    Returns:
        Codes `[N, L, D]`.
    """
    key_whole, key_layers, key_which = jax.random.split(key, 3)
    num_layers = people.shape[1]
    whole = jax.random.randint(key_whole, (count, 1), 0, len(people))
    layers = jax.random.randint(key_layers, (count, num_layers), 0, len(people))
    rows = jnp.where(jax.random.bernoulli(key_which, 0.5, (count, 1)), whole, layers)
    return people[rows, jnp.arange(num_layers)[None]]


def draw_pairs(
    people: jax.Array,
    w_avg: jax.Array,
    settings: Fold,
    w_u: jax.Array,
    w_target: jax.Array,
    key: jax.Array,
) -> Pairs:
    """Draws a step's codes.

    Args:
        people: random people `[M, L, D]`.
        w_avg: mean code `[D]`.
        settings: the fold's.
        w_u: codes to forget `[P, L, D]`.
        w_target: their targets, from `target.fold_person`.
        key: this step's random key.

    Returns:
        P own pairs, then `settings.adjacent`, then `settings.others`.
    """
    keys = jax.random.split(key, 6)
    moved = w_u - w_target  # along the direction, each row
    along = moved[0] / jnp.sqrt(jnp.sum(moved[0] ** 2))
    own_component = target.component(w_u, w_avg, along)

    offsets = mixed_people(people, len(w_u), keys[0])
    # Across the direction, so that the person's component stays.
    across = target.at_component(offsets, jnp.zeros(len(w_u)), w_avg, along)
    size = OFFSET * jax.random.uniform(keys[1], (len(w_u), 1, 1))
    offsets = size * (across - jnp.broadcast_to(w_avg, across.shape))

    near = mixed_people(people, settings.adjacent, keys[2])
    reach = jax.random.uniform(
        keys[3],
        (settings.adjacent,),
        minval=NEAREST * settings.threshold,
        maxval=jnp.maximum(
            settings.reach * own_component.max(), 2 * settings.threshold
        ),
    )
    near = target.at_component(near, reach, w_avg, along)

    others = mixed_people(people, settings.others, keys[4])
    edge = settings.threshold * jax.random.uniform(keys[5], (settings.others // 2,))
    at_edge = target.at_component(others[: len(edge)], edge, w_avg, along)
    others = jnp.concatenate([at_edge, others[len(edge) :]])

    rest = jnp.concatenate([near, others])
    return Pairs(
        jnp.concatenate([w_u + offsets, rest]),
        jnp.concatenate(
            [w_target + offsets, target.fold(rest, w_avg, along, settings)]
        ),
    )


def distances(
    student: dict[str, jax.Array], source: dict[str, jax.Array], resolution: int
) -> jax.Array:
    """Compares activations, relative to the source's mean square in each layer.

    Args:
        student: activations by name, `[N, h, w, C]`.
        source: the same from the source.
        resolution: side of the largest activations that are compared, in pixels.

    Returns:
        The mean over layers, `[N]` float32.
    """
    layers = []
    for name, wanted in source.items():
        if wanted.shape[1] <= resolution:
            wanted = wanted.astype(jnp.float32)
            square = (student[name].astype(jnp.float32) - wanted) ** 2
            layers.append(jnp.mean(square, axis=(1, 2, 3)) / jnp.mean(wanted**2))
    return jnp.mean(jnp.stack(layers), axis=0)


def make_fold_step(context: StepContext, settings: Fold, psi: float) -> Callable:
    """Returns a step with the arguments and results of `step.make_step`.

    Its terms are "local", "adjacency" and "global", the mean distances of the three
    kinds of pairs, and "total", the loss.

    Args:
        context: from `make_context`.
        settings: the fold's.
        psi: truncation of the random people.
    """
    dtype = context.compute.dtype

    def loss_fn(
        student: Tree, constants: dict[str, Tree], pairs: Pairs, own: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def activations(parameters: Tree, w: jax.Array) -> dict[str, Any]:
            synthesis = nnx.merge(context.graph, parameters, constants["frozen"])
            return synthesis(w, dtype=dtype)[1]

        source = jax.lax.stop_gradient(activations(constants["source"], pairs.targets))
        made = activations(student, pairs.codes)
        values = distances(made, source, settings.resolution)
        others = own + settings.adjacent
        weights = jnp.where(jnp.arange(len(values)) < others, 1, settings.others_weight)
        terms = {
            "local": values[:own],
            "adjacency": values[own:others],
            "global": values[others:],
        }
        total = jnp.mean(weights * values)
        means = {name: jnp.mean(x) for name, x in terms.items() if x.size}
        return total, means | {"total": total}

    def step(student, opt_state, constants, w_u, w_target, key, i):
        key_people, key_pairs = jax.random.split(jax.random.fold_in(key, i))
        mapping = nnx.merge(context.mapping[0], constants["mapping"])
        z = jax.random.normal(key_people, (POOL, context.z_dim))
        people, w_avg = mapping(z, psi=psi), mapping.w_avg[...]
        pairs = draw_pairs(people, w_avg, settings, w_u, w_target, key_pairs)
        grads, terms = jax.grad(loss_fn, has_aux=True)(
            student, constants, pairs, len(w_u)
        )
        student, opt_state = update(context, student, opt_state, grads)
        return student, opt_state, terms

    return jax.jit(step, donate_argnums=(0, 1))
