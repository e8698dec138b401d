"""One step of unlearning by the fold, which replaces the paper's losses.

The student learns to show for each code what the source shows for the code's target
(`target.fold`). It learns this from the activations up to a resolution that holds the
identity, without LPIPS, an identity encoder or the large layers, so that a step can
take many codes:

- own: the person's codes, with random people's offsets added;
- adjacent: random people moved along one of the person's directions, who come to look
  like the person, in other poses and light;
- others: random people. Half of them are moved to just below the threshold, where the
  student confuses them with the person most easily.

A discriminant reads directions in which codes hardly vary, so that the gradient of the
layers that read codes (`generator.reads_code`) is small there. These layers' weights
are therefore also trained along the person's measures, by an optimizer of their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from guide_jax import target
from guide_jax.config_types import Fold
from guide_jax.models.generator import reads_code
from guide_jax.target import FoldMap
from guide_jax.training.context import StepContext, Tree
from guide_jax.training.step import gradient_size, update

POOL = 64  # random people from whom a step's codes are mixed
OFFSET = 0.8  # largest offset added to the person's codes, in random people's own
FINAL_RATE = 0.05  # the last learning rate, relative to the first
SMALLEST_SPREAD = 0.1  # of random people's components, in thresholds
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
    fold_map: FoldMap,
    key: jax.Array,
) -> Pairs:
    """Draws a step's codes.

    Args:
        people: random people `[M, L, D]`.
        w_avg: mean code `[D]`.
        settings: the fold's.
        w_u: codes to forget `[P, L, D]`.
        w_target: their targets, from `target.fold_person`.
        fold_map: the person's.
        key: this step's random key.

    Returns:
        P own pairs, then `settings.adjacent`, then `settings.others`.
    """
    keys = jax.random.split(key, 7)
    count, edges = settings.adjacent, settings.others // 2

    # Along the directions nothing is added, so that the person's components stay.
    offsets = mixed_people(people, len(w_u), keys[0]) - jnp.broadcast_to(
        w_avg, w_u.shape
    )
    size = OFFSET * jax.random.uniform(keys[1], (len(w_u), 1, 1))
    offsets = size * target.without_components(offsets, fold_map)

    lengths = jnp.asarray(fold_map.lengths)
    k = jax.random.randint(keys[2], (count + edges,), 0, len(lengths))
    reach = jnp.maximum(settings.reach * lengths[k[:count]], 2 * settings.threshold)
    near = target.at_component(
        mixed_people(people, count, keys[3]),
        k[:count],
        jax.random.uniform(
            keys[4], (count,), minval=NEAREST * settings.threshold, maxval=reach
        ),
        w_avg,
        fold_map,
    )

    others = mixed_people(people, settings.others, keys[5])
    edge = settings.edge * settings.threshold * jax.random.uniform(keys[6], (edges,))
    at_edge = target.at_component(others[:edges], k[count:], edge, w_avg, fold_map)

    rest = jnp.concatenate([near, at_edge, others[edges:]])
    return Pairs(
        jnp.concatenate([w_u + offsets, rest]),
        jnp.concatenate(
            [w_target + offsets, target.fold(rest, w_avg, fold_map, settings)]
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


def falling(rate: float, steps: int) -> optax.Schedule:
    """Returns a learning rate that falls to `FINAL_RATE` of itself over the steps."""
    schedule = optax.cosine_decay_schedule(rate, max(1, steps), FINAL_RATE)
    # Optax divides the count as it is, an integer.
    return lambda count: schedule(count.astype(jnp.float32))


class MeasureOptimizer:
    """Adam for the parts of affine weights that lie along a person's measures.

    An affine weight `[D, C]` changes by `measures^T [D, K] @ step [K, C]`, relative to
    its size. Random people's components along the measures have a spread of 1.
    """

    def __init__(self, settings: Fold, steps: int):
        """Makes Adam; with `settings.affine_rate` 0, nothing changes."""
        self._rate = rate = settings.affine_rate
        self._adam = optax.adam(falling(rate, steps))
        # If people hardly differ, they are not what the measures are relative to.
        self._smallest = SMALLEST_SPREAD * settings.threshold

    def init(self, source: Tree, fold_map: FoldMap) -> Tree:
        """Returns the optimizer's state before the first step."""
        affine = self._affine(source) if self._rate else {}
        count = len(fold_map.lengths)
        return self._adam.init(
            {name: jnp.zeros((count, x.shape[1])) for name, x in affine.items()}
        )

    def update(
        self, student: Tree, source: Tree, grads: Tree, state: Tree, fold_map: FoldMap
    ) -> tuple[Tree, Tree]:
        """Applies a step; returns (student, state)."""
        if not self._rate:
            return student, state
        spreads = jnp.maximum(fold_map.spreads, self._smallest)[:, None]
        measures = jnp.sum(jnp.asarray(fold_map.measures), axis=1) / spreads  # [K, D]
        along = {name: measures @ x for name, x in self._affine(grads).items()}
        steps, state = self._adam.update(along, state)
        sizes = {
            name: jnp.sqrt(jnp.mean(x**2)) for name, x in self._affine(source).items()
        }

        def changed(path: tuple, weight: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path)
            if name not in sizes:
                return weight
            return weight + sizes[name] * (measures.T @ steps[name])

        return jax.tree_util.tree_map_with_path(changed, student), state

    @staticmethod
    def _affine(parameters: Tree) -> dict[str, jax.Array]:
        """Returns path -> weight `[D, C]` of each layer that reads codes."""
        return {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)
            if reads_code(path)
        }


def make_fold_step(
    context: StepContext, settings: Fold, measured: MeasureOptimizer, psi: float
) -> Callable:
    """Returns a step with the arguments and results of `step.make_step`.

    Its `constants` also hold the person's `fold_map`, and its `opt_state` is that of
    Adam and that of `measured`. Its terms are "local", "adjacency" and "global", the
    mean distances of the three kinds of pairs, "total", the loss, and "gradient".

    Args:
        context: from `make_context`.
        settings: the fold's.
        measured: trains affine weights along the person's measures.
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
        fold_map = constants["fold_map"]
        pairs = draw_pairs(people, w_avg, settings, w_u, w_target, fold_map, key_pairs)
        grads, terms = jax.grad(loss_fn, has_aux=True)(
            student, constants, pairs, len(w_u)
        )
        adam, along = opt_state
        student, adam = update(context, student, adam, grads)
        student, along = measured.update(
            student, constants["source"], grads, along, fold_map
        )
        return student, (adam, along), terms | gradient_size(grads)

    return jax.jit(step, donate_argnums=(0, 1))
