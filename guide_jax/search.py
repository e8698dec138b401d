"""Searches for the code whose image is closest to a photo, by optimisation.

The search stays in the generator's own coordinates: codes are whitened by
`inversion.Prior`, so that one learning rate suits every generator. Unlike the
refinement of an inversion, it has no penalty that keeps codes where people are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from guide_jax.batching import batches
from guide_jax.inversion import START, Prior
from guide_jax.models import arcface
from guide_jax.models.generator import Generator, synthesize


class Reached(NamedTuple):
    """The best codes of a search after some of its steps.

    Attributes:
        codes: `[N, L, D]`.
        errors: what the search minimised, `[N]`.
    """

    codes: np.ndarray
    errors: np.ndarray


class Search:
    """Compiled searches, for generators of one architecture."""

    def __init__(
        self,
        generator: Generator,
        lpips: nnx.Module,
        identity: arcface.IRNet,
        prior: Prior,
        learning_rate: float,
        batch: int,
    ):
        """Prepares the programs.

        Args:
            generator: any generator of the architecture.
            lpips: LPIPS, which the objective "photo" uses.
            identity: the loss's identity encoder, which "identity" uses.
            prior: where the generator's people are.
            learning_rate: Adam's, in standard deviations of the generator's people.
            batch: number of codes that are searched for at a time.
        """
        graph, _ = nnx.split(generator.synthesis)
        networks_graph, self._networks = nnx.split((lpips, identity))
        self._prior, self._batch = prior, batch
        self._num_ws = generator.num_ws
        adam = optax.adam(learning_rate)
        self._init = jax.jit(adam.init)

        def errors(
            v: jax.Array, state: Any, networks: Any, targets: jax.Array, objective: str
        ) -> jax.Array:
            lpips, identity = nnx.merge(networks_graph, networks)
            w = prior.color(v)
            w = jnp.broadcast_to(w, (len(w), generator.num_ws, w.shape[2]))
            images = synthesize(nnx.merge(graph, state), w).images
            if objective == "identity":
                made, wanted = (arcface.embed(identity, x) for x in (images, targets))
                return 1 - jnp.sum(made * wanted, axis=1)
            square = jnp.mean((images - targets) ** 2, axis=(1, 2, 3))
            return lpips(images, targets) + square

        def step(v, best, opt_state, state, networks, targets, objective):
            def total(v: jax.Array) -> tuple[jax.Array, jax.Array]:
                each = errors(v, state, networks, targets, objective)
                return jnp.sum(each), each

            grads, each = jax.grad(total, has_aux=True)(v)
            better = each < best[0]
            best = (
                jnp.where(better, each, best[0]),
                jnp.where(better[:, None, None], v, best[1]),
            )
            updates, opt_state = adam.update(grads, opt_state)
            return optax.apply_updates(v, updates), best, opt_state

        self._step = jax.jit(step, static_argnames="objective")

    def __call__(
        self,
        generator: Generator,
        targets: np.ndarray,
        starts: np.ndarray,
        budgets: Sequence[int],
        objective: str = "photo",
        bar: tqdm | None = None,
    ) -> dict[int, Reached]:
        """Searches, one batch after another.

        Args:
            generator: the generator that is attacked.
            targets: images `[N, H, W, 3]` to come close to.
            starts: first codes, `[N, 1, D]` to search in W, `[N, L, D]` in W+.
            budgets: numbers of steps after which the best codes are returned, rising.
            objective: "photo" minimises LPIPS plus the mean squared error, "identity"
                the loss's identity distance.
            bar: is advanced by the steps of each code.

        Returns:
            Number of steps -> the best codes so far.
        """
        state = nnx.state(generator.synthesis)
        found: dict[int, list[tuple]] = {steps: [] for steps in budgets}
        pairs = (batches(x, self._batch) for x in (starts, targets))
        for (w, count), (images, _) in zip(*pairs, strict=True):
            v = _whiten(self._prior, jnp.asarray(w))
            v = jnp.clip(v, -START, START)
            opt_state = self._init(v)
            best = jnp.full(len(v), jnp.inf, v.dtype), v
            # One extra step, because each step measures the error before its update.
            for i in range(max(budgets) + 1):
                v, best, opt_state = self._step(
                    v, best, opt_state, state, self._networks, images, objective
                )
                if i in found:
                    found[i].append(
                        (np.asarray(self._codes(best[1]))[:count], best[0][:count])
                    )
                if bar is not None and i:
                    bar.update(count)
        return {
            steps: Reached(*(np.concatenate(x) for x in zip(*parts, strict=True)))
            for steps, parts in found.items()
        }

    def _codes(self, v: jax.Array) -> jax.Array:
        w = _color(self._prior, v)
        return jnp.broadcast_to(w, (len(w), self._num_ws, w.shape[2]))


_whiten: Callable = jax.jit(Prior.whiten)
_color: Callable = jax.jit(Prior.color)
