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
from guide_jax.training.step import draw_latents, gradient_size, gradients, update

# The share of the free memory that a step is planned with: judges and other programs
# need some too.
PLANNED = 0.8
# One pair alone, relative to a pair's share of all pairs at once: weights and Adam's
# moments are there in any case.
ALONE = 1.25


def bytes_of_pair(resolution: int) -> int:
    """Estimates the memory that a step needs for each pair of images, in bytes.

    With StyleGAN2's largest configuration, VGG16 and IR-SE50, five pairs take 19.7 GiB
    at 1024 pixels.
    """
    return int(4.3e9 * (resolution / 1024) ** 2)


def is_needed(
    choice: str, sampling: Sampling, resolution: int, group: DeviceGroup
) -> tuple[bool, str]:
    """Decides whether gradients are accumulated, from the memory that is free.

    Args:
        choice: "auto", "always" or "never", from config.gradient_accumulation.
        sampling: how many random latents a step draws.
        resolution: side of the images in pixels.
        group: the devices that share a step.

    Returns:
        The decision, and the plan in a line, which says so if too little is free.
    """
    random = sampling.num_adjacent + sampling.num_global
    pairs = 1 + random // len(group.devices)
    # Process 0's memory decides, since all processes must run the same programs.
    free = float(distributed.broadcast(np.float32(group.memory())))
    at_once, one = (n * bytes_of_pair(resolution) for n in (pairs, 1))
    accumulates = choice == "always" or (choice == "auto" and at_once > PLANNED * free)
    plan, needed = f"all {pairs} pairs of a step at once", float(at_once)
    if accumulates:
        plan, needed = "one pair of images at a time", ALONE * one
        if choice == "auto":
            plan = (
                f"gradient accumulation is on, because all {pairs} pairs of a step at"
                f" once would take about {_gigabytes(at_once)}; {plan}"
            )
    line = f"memory: {plan}, about {_gigabytes(needed)} of {_gigabytes(free)} free"
    if needed > PLANNED * free:
        cure = "end other programs, or use a smaller generator"
        if not accumulates:
            cure = "set config.gradient_accumulation to 'auto'"
        line += f"; it may not fit, and the system may end the run: {cure}"
    return accumulates, line


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


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
        terms = loss_terms(values, context.weights, own)
        return student, opt_state, terms | gradient_size(total)

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
