"""A step in the memory of one pair of pictures, which come one after another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from guide_jax.training.losses import Differences, factors, loss_terms
from guide_jax.training.sharding import Shares, Team, meet
from guide_jax.training.step import Draws, Trainer, draw_latents, gradients, update


def step_bytes(resolution: int) -> int:
    """Returns about how many bytes each pair of a step takes.

    StyleGAN2's largest, VGG16 and IR-SE50 take 19.7 GiB for five pairs at 1024 pixels.
    """
    return int(4.3e9 * (resolution / 1024) ** 2)


def make_frugal_step(trainer: Trainer, draws: Draws, team: Team) -> Callable:
    """As `make_train_step`, in the memory of one pair.

    The loss is a sum over pairs, so its gradient is the sum of theirs: one program
    takes a pair of each device forward and back, another adds it up and takes the step.
    """
    devices = len(team.devices)
    shares = Shares(draws.num_adjacent, draws.num_global, devices)
    by = factors(trainer.weights, draws.num_adjacent, draws.num_global)

    def draw(index, student, constants, w_u, w_target, key, i):
        key = jax.random.fold_in(key, i)
        latents = draw_latents(trainer, constants, draws, w_u, w_target, key)
        # Those compared by LPIPS alone count for nothing else: one program for all.
        none = jnp.zeros(draws.num_global)
        mse, identity = (jnp.concatenate([x, none]) for x in (by.mse, by.identity))
        of_all = Differences(mse, jnp.asarray(by.lpips), identity)
        mine = jax.tree.map(
            lambda x: shares.take(x, index, own=True), (latents, of_all)
        )
        count = len(mine[0].student)
        rounds = [jax.tree.map(lambda x, i=i: x[i : i + 1], mine) for i in range(count)]
        return jax.tree.map(jnp.zeros_like, student), rounds

    def pair(index, student, total, constants, latents, by, own):
        def find():
            return gradients(trainer, student, constants, latents, by)

        if devices > 1:  # the person's own pair is the first device's

            def nothing():
                return jax.tree.map(jnp.zeros_like, jax.eval_shape(find))

            grads, found = lax.cond((index == 0) | ~own, find, nothing)
        else:
            grads, found = find()
        return jax.tree.map(jnp.add, total, grads), found

    def finish(index, student, opt_state, total, found):
        mse, lpips, identity = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
        rows = 1 + draws.num_adjacent // devices
        found = Differences(mse[:rows], lpips, identity[:rows])
        if devices > 1:
            total, found = meet((total, shares.place(found, index, own=True)))
        student, opt_state = update(trainer, student, opt_state, total)
        return student, opt_state, loss_terms(found, trainer.weights)

    draw = team.map(draw, mapped=(False,) * 6, out_mapped=True)
    pair = team.map(
        pair,
        mapped=(False, True, False, True, True, False),
        out_mapped=True,
        donate=(1,),
    )
    finish = team.map(finish, mapped=(False, False, True, True), donate=(0, 1))

    def train_step(student, opt_state, constants, w_u, w_target, key, i):
        total, rounds = draw(student, constants, w_u, w_target, key, i)
        found = []
        for number, (latents, of_pair) in enumerate(rounds):
            own = np.bool_(number == 0)
            total, differences = pair(student, total, constants, latents, of_pair, own)
            found.append(differences)
        return finish(student, opt_state, total, found)

    return train_step
