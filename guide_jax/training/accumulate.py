"""Gradient accumulation: the same step, one pair of images at a time.

The loss is a sum over pairs, so its gradient is the sum of the pairs' gradients.
Summing them one by one needs a fraction of the memory and gives the same results up to
rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from guide_jax.config_types import Sampling
from guide_jax.training import distributed
from guide_jax.training.context import StepContext
from guide_jax.training.losses import PairTerms, loss_terms, term_weights
from guide_jax.training.sharding import DeviceGroup, Shards, all_reduce
from guide_jax.training.step import draw_latents, gradients, update


def bytes_of_pair(resolution: int) -> int:
    """Estimates the memory that a step needs for each pair of images, in bytes.

    With StyleGAN2's largest configuration, VGG16 and IR-SE50, five pairs take 19.7 GiB
    at 1024 pixels.
    """
    return int(4.3e9 * (resolution / 1024) ** 2)


def is_needed(
    choice: str, sampling: Sampling, resolution: int, group: DeviceGroup
) -> tuple[bool, str]:
    """Decides whether gradients are accumulated.

    Args:
        choice: "auto", "always" or "never", from config.gradient_accumulation.
        sampling: how many random latents a step draws.
        resolution: side of the images in pixels.
        group: the devices that share a step.

    Returns:
        The decision, and a line that explains it if "auto" turned accumulation on.
    """
    if choice != "auto":
        return choice == "always", ""
    random = sampling.num_adjacent + sampling.num_global
    pairs = 1 + random // len(group.devices)
    # Process 0's memory decides, since all processes must run the same programs.
    available = float(distributed.broadcast(np.float32(group.memory())))
    needed = pairs * bytes_of_pair(resolution)
    if needed < available:
        return False, ""
    return True, (
        f"gradient accumulation is on: all {pairs} pairs of a step at once would take"
        f" about {needed / 1e9:.0f} GB, but only {available / 1e9:.0f} GB are available"
        " (config.gradient_accumulation)"
    )


def make_accumulating_step(
    context: StepContext, sampling: Sampling, group: DeviceGroup
) -> Callable:
    """Returns a step with the arguments and results of `step.make_step`.

    It runs three programs: the first draws the latents, the second adds the gradient of
    one pair on each device, and the third applies the update.
    """
    devices = len(group.devices)
    adjacent, random = sampling.num_adjacent, sampling.num_global

    def draw(index, student, constants, w_u, w_target, key, i):
        key = jax.random.fold_in(key, i)
        latents = draw_latents(context, constants, sampling, w_u, w_target, key)
        own = len(w_u)
        weights = term_weights(context.weights, adjacent, random, own)
        # Random rows get weight 0 for the terms that they lack, so that one program
        # handles all rows.
        none = jnp.zeros(random)
        mse, identity = (
            jnp.concatenate([x, none]) for x in (weights.mse, weights.identity)
        )
        every = PairTerms(mse, jnp.asarray(weights.lpips), identity)
        shards = Shards(own, own * adjacent, random, devices)
        rows = jax.tree.map(lambda x: shards.take(x, index, own=True), (latents, every))
        count = len(rows[0].student)
        pairs = [jax.tree.map(lambda x, i=i: x[i : i + 1], rows) for i in range(count)]
        return jax.tree.map(jnp.zeros_like, student), pairs

    def add(index, student, total, constants, latents, weights, is_own):
        def find():
            return gradients(context, student, constants, latents, weights)

        if devices > 1:  # only device 0 computes the own rows

            def nothing():
                return jax.tree.map(jnp.zeros_like, jax.eval_shape(find))

            grads, values = lax.cond((index == 0) | ~is_own, find, nothing)
        else:
            grads, values = find()
        return jax.tree.map(jnp.add, total, grads), values

    def finish(index, student, opt_state, total, values, w_u):
        own = len(w_u)
        mse, lpips, identity = jax.tree.map(lambda *x: jnp.concatenate(x), *values)
        rows = own + own * adjacent // devices
        values = PairTerms(mse[:rows], lpips, identity[:rows])
        if devices > 1:
            shards = Shards(own, own * adjacent, random, devices)
            placed = shards.place(values, index, own=True)
            total, values = all_reduce((total, placed))
        student, opt_state = update(context, student, opt_state, total)
        return student, opt_state, loss_terms(values, context.weights, own)

    draw = group.map(draw, mapped=(False,) * 6, out_mapped=True)
    add = group.map(
        add,
        mapped=(False, True, False, True, True, False),
        out_mapped=True,
        donate=(1,),
    )
    finish = group.map(finish, mapped=(False, False, True, True, False), donate=(0, 1))

    def step(student, opt_state, constants, w_u, w_target, key, i):
        total, pairs = draw(student, constants, w_u, w_target, key, i)
        values = []
        for number, (latents, weights) in enumerate(pairs):
            is_own = np.bool_(number < len(w_u))
            total, terms = add(student, total, constants, latents, weights, is_own)
            values.append(terms)
        return finish(student, opt_state, total, values, w_u)

    return step
