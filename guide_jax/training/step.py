"""One step of latent target unlearning, in the paper's order (section 3.3).

A step draws the random latents and, in 3D, a view, passes all pairs through student and
source, compares them, takes the gradient with respect to the student, and updates the
student with Adam.
`make_step` compiles this for one device, `sharding.py` for several; `accumulate.py`
processes one pair of images at a time.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax
from flax import nnx

from guide_jax.config_types import Sampling
from guide_jax.training.context import StepContext, Tree
from guide_jax.training.losses import (
    LossInputs,
    LossNetworks,
    PairTerms,
    StepLatents,
    loss_inputs,
    loss_terms,
    pair_terms,
    step_latents,
    term_weights,
    weighted_sum,
)


def draw_latents(
    context: StepContext,
    constants: dict[str, Tree],
    sampling: Sampling,
    w_u: jax.Array,
    w_target: jax.Array,
    key: jax.Array,
) -> StepLatents:
    """Draws the random latents of one step, and its view.

    Student and source share the mapping network, since it is frozen.

    Args:
        context: from `make_context`.
        constants: `context.constants()`.
        sampling: how the random latents are drawn.
        w_u: codes to forget `[P, L, D]`.
        w_target: their targets `[P, L, D]`.
        key: this step's random key.
    """
    mapping = nnx.merge(context.mapping[0], constants["mapping"])
    key_z, key_alpha = jax.random.split(key)
    num_adjacent = len(w_u) * sampling.num_adjacent
    z = jax.random.normal(key_z, (num_adjacent + sampling.num_global, context.z_dim))
    w_r = mapping(z, psi=sampling.psi)  # [P * N_a + N_g, L, D]
    alpha = jax.random.uniform(key_alpha, (num_adjacent,)) * sampling.alpha_max
    w_ra, w_rg = w_r[:num_adjacent], w_r[num_adjacent:]
    # The split above gave the keys 0 and 1.
    count = len(w_u) + len(w_r)
    view = context.draw_view(jax.random.fold_in(key, 2), count)
    if context.compat:
        seeds = jax.random.bits(jax.random.fold_in(key, 3), (count,), "uint32")
        view["noise_seed"] = seeds
    return step_latents(w_u, w_target, w_ra, alpha, w_rg, view)


def loss_fn(
    context: StepContext,
    student: Tree,
    constants: dict[str, Tree],
    latents: StepLatents,
    weights: PairTerms,
) -> tuple[jax.Array, PairTerms]:
    """Computes the loss of all or some of a step's pairs.

    Args:
        context: from `make_context`.
        student: the trainable parameters.
        constants: `context.constants()`.
        latents: the pairs' latents, `[N, L, D]` for student and source, and their
            views; random rows come last.
        weights: the weights of these pairs' terms, from `losses.term_weights`.

    Returns:
        The loss, and the pairs' terms.
    """
    merged = nnx.merge(context.loss_networks[0], constants["loss_networks"])
    networks = LossNetworks(merged["lpips"], merged["identity"])

    def inputs(parameters: Tree, w: jax.Array, view: dict) -> LossInputs:
        synthesis = nnx.merge(context.graph, parameters, constants["frozen"])
        num_pairs = len(weights.identity)
        settings = num_pairs, context.compute, view
        return loss_inputs(synthesis, w, networks, *settings)

    view = _drawn_again(latents.view) if context.compat else latents.view
    with jax.named_scope("source"):
        found = inputs(constants["source"], latents.source, view)
        source = jax.lax.stop_gradient(found)
    with jax.named_scope("student"):
        made = inputs(student, latents.student, latents.view)
    lpips_distance = partial(networks.lpips.raw_distance, dtype=made.features.dtype)
    with jax.named_scope("losses"):
        values = pair_terms(made, source, lpips_distance)
    return weighted_sum(values, weights), values


def _drawn_again(view: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the same cameras with other noise and other samples along rays."""
    other = dict(view)
    if "key" in view:
        other["key"] = jax.vmap(lambda key: jax.random.fold_in(key, 1))(view["key"])
    other["noise_seed"] = ~view["noise_seed"]
    return other


def gradients(
    context: StepContext,
    student: Tree,
    constants: dict[str, Tree],
    latents: StepLatents,
    weights: PairTerms,
) -> tuple[Tree, PairTerms]:
    """Returns `loss_fn`'s gradient with respect to the student, and the terms."""

    def loss(student: Tree) -> tuple[jax.Array, PairTerms]:
        return loss_fn(context, student, constants, latents, weights)

    return jax.grad(loss, has_aux=True)(student)


def update(
    context: StepContext, student: Tree, opt_state: Tree, grads: Tree
) -> tuple[Tree, Tree]:
    """Applies Adam; returns (student, opt_state)."""
    updates, opt_state = context.optimizer.update(grads, opt_state, student)
    return optax.apply_updates(student, updates), opt_state


def gradient_size(grads: Tree) -> dict[str, jax.Array]:
    """Returns the term "gradient", its L2 norm, which is finite only if all of it is.

    The loss may be finite where its gradient is not.
    """
    # Without the barrier, libtpu 0.0.42 crashes when it compiles this together with the
    # update for a TPU v6e.
    return {"gradient": optax.global_norm(jax.lax.optimization_barrier(grads))}


def take_step(
    context: StepContext,
    student: Tree,
    opt_state: Tree,
    constants: dict[str, Tree],
    latents: StepLatents,
    num_codes: int,
    sampling: Sampling,
) -> tuple[Tree, Tree, dict[str, jax.Array]]:
    """Takes one step with given latents, on one device.

    Args:
        context: from `make_context`.
        student: the trainable parameters.
        opt_state: Adam's state.
        constants: `context.constants()`.
        latents: from `draw_latents`.
        num_codes: P.
        sampling: how many latents were drawn.

    Returns:
        Student and opt_state after the step, and the terms before it: those of
        `losses.loss_terms`, and of `gradient_size`.
    """
    counts = sampling.num_adjacent, sampling.num_global, num_codes
    weights = term_weights(context.weights, *counts)
    grads, values = gradients(context, student, constants, latents, weights)
    student, opt_state = update(context, student, opt_state, grads)
    terms = loss_terms(values, context.weights, num_codes)
    return student, opt_state, terms | gradient_size(grads)


def make_step(context: StepContext, sampling: Sampling) -> Callable:
    """Returns the step, compiled for one device.

    The step takes (student, opt_state, constants, w_u, w_target, key, i), overwrites
    the first two, and returns (student, opt_state, terms). Step i draws its random
    latents from `jax.random.fold_in(key, i)`.
    """

    def step(student, opt_state, constants, w_u, w_target, key, i):
        key = jax.random.fold_in(key, i)
        latents = draw_latents(context, constants, sampling, w_u, w_target, key)
        state = student, opt_state, constants
        return take_step(context, *state, latents, len(w_u), sampling)

    return jax.jit(step, donate_argnums=(0, 1))
