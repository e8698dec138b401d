"""The published order of the work, in JAX: one latent at a time, in two passes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from guide_jax.config_types import Sampling
from guide_jax.models.generator import synthesize
from guide_jax.training.context import StepContext, Tree
from guide_jax.training.losses import PairTerms, loss_terms, term_weights
from guide_jax.training.sharding import DeviceGroup
from guide_jax.training.step import draw_latents, gradient_size, loss_fn, update


def make_separate_step(
    context: StepContext, sampling: Sampling, devices: DeviceGroup
) -> Callable:
    """Returns a step with the arguments and results of `step.make_step`.

    As in the published code, each latent passes on its own, and features and image
    come from separate passes through the backbone.
    """
    del devices

    def features(
        parameters: Tree, frozen: Tree, w: jax.Array, view: dict[str, jax.Array]
    ) -> jax.Array:
        # Otherwise XLA would find the image's pass and share it.
        parameters = jax.lax.optimization_barrier(parameters)
        synthesis = nnx.merge(context.graph, parameters, frozen)
        return synthesize(synthesis, w, dtype=context.compute.dtype, **view).features

    def step(student, opt_state, constants, w_u, w_target, key, i):
        key = jax.random.fold_in(key, i)
        latents = draw_latents(context, constants, sampling, w_u, w_target, key)
        counts = sampling.num_adjacent, sampling.num_global, len(w_u)
        weights = term_weights(context.weights, *counts)

        def loss(student: Tree) -> tuple[jax.Array, PairTerms]:
            total, found = jnp.zeros(()), []
            for row in range(len(latents.student)):
                one = jax.tree.map(lambda x, row=row: x[row : row + 1], latents)
                weight = jax.tree.map(lambda x, row=row: x[row : row + 1], weights)
                without = weight._replace(mse=0 * weight.mse)
                shown, values = loss_fn(context, student, constants, one, without)
                total += shown
                if len(weight.mse):
                    made, wanted = (
                        features(x, constants["frozen"], w, one.view)
                        for x, w in (
                            (student, one.student),
                            (constants["source"], one.source),
                        )
                    )
                    wanted = jax.lax.stop_gradient(wanted)
                    mse = jnp.mean((made - wanted) ** 2)
                    total += weight.mse[0] * mse
                    values = values._replace(mse=mse[None])
                found.append(values)
            return total, jax.tree.map(lambda *x: jnp.concatenate(x), *found)

        grads, values = jax.grad(loss, has_aux=True)(student)
        student, opt_state = update(context, student, opt_state, grads)
        terms = loss_terms(values, context.weights, len(w_u))
        return student, opt_state, terms | gradient_size(grads)

    return jax.jit(step, donate_argnums=(0, 1))
