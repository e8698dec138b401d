"""What was forgotten and what was kept: identity and LPIPS, before and after."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.losses import Judges
from guide_jax.models import arcface

BATCH = 10  # latents in one jitted pass


class Looks(NamedTuple):
    """How a generator shows some latents.

    Attributes:
        images: `[N, H, W, 3]` float32.
        embeddings: unit-norm identity embeddings `[N, E]`.
    """

    images: np.ndarray
    embeddings: np.ndarray


class Evaluator:
    """Compares generators, by networks that took no part in the training.

    The passes are compiled once, for however many generators and people.
    """

    def __init__(self, generator: nnx.Module, judges: Judges):
        """Prepares the passes.

        Args:
            generator: any with the architecture of those to be compared.
            judges: LPIPS, and an identity encoder that was not in the loss.
        """
        graph = nnx.split(generator.synthesis)[0]
        identity, self._identity = nnx.split(judges.identity)
        lpips, self._lpips = nnx.split(judges.lpips)

        @jax.jit
        def look(synthesis, identity_state, w):
            images, _ = nnx.merge(graph, synthesis)(w)
            encoder = nnx.merge(identity, identity_state)
            return images, arcface.embed(encoder, images)

        @jax.jit
        def distance(lpips_state, a, b):
            return nnx.merge(lpips, lpips_state)(a, b)

        @jax.jit
        def embed(identity_state, images):
            return arcface.embed(nnx.merge(identity, identity_state), images)

        self._look, self._distance, self._embed = look, distance, embed

    def look(self, generator: nnx.Module, w: jax.Array) -> Looks:
        """Shows latents `[N, L, D]` through a generator."""
        state = nnx.state(generator.synthesis)
        parts = [
            self._look(state, self._identity, part)
            for part, _ in _batches(np.asarray(w))
        ]
        images, embeddings = (
            np.concatenate(x)[: len(w)] for x in zip(*parts, strict=True)
        )
        return Looks(images, embeddings)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Unit-norm identity embeddings `[N, E]` of pictures `[N, H, W, 3]`."""
        return np.asarray(self._embed(self._identity, images))

    def lpips(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """LPIPS of image pairs `[N, H, W, 3]`, `[N]`."""
        pairs = zip(_batches(a), _batches(b), strict=True)
        parts = [self._distance(self._lpips, x, y)[:n] for (x, n), (y, _) in pairs]
        return np.concatenate(parts)

    def compare(self, before: Looks, after: Looks, person: tuple[Looks, Looks]) -> dict:
        """Measures one unlearning.

        Args:
            before: other people, by the original generator.
            after: the same latents, by the one that forgot.
            person: the forgotten person, before and after.

        Returns:
            The measures by name; `MEASURES` says what each means.
        """
        own = np.sum(before.embeddings * after.embeddings, axis=1)
        lpips = self.lpips(before.images, after.images)
        pairs = before.embeddings @ before.embeddings.T
        strangers = pairs[np.triu_indices(len(pairs), 1)]
        id_person = np.sum(person[0].embeddings * person[1].embeddings)
        return {
            "id": float(id_person),
            "id_strangers": float(strangers.mean()),
            "lpips_person": float(self.lpips(person[0].images, person[1].images)[0]),
            "id_others": float(own.mean()),
            "id_others_worst": float(own.min()),
            "lpips_others": float(lpips.mean()),
            "others": len(own),
        }


MEASURES = {
    "id": "identity similarity of the person before and after (low: forgotten)",
    "id_strangers": "the same of two different people, for comparison",
    "lpips_person": "LPIPS of the person's picture before and after",
    "id_others": "mean identity similarity of other people to themselves (high: kept)",
    "id_others_worst": "the lowest of them",
    "lpips_others": "mean LPIPS of other people to themselves (low: kept)",
    "others": "how many other people were looked at",
}


def _batches(x: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Cuts into batches of one size; the last repeats its last row to be full."""
    batches = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        missing = BATCH - len(part)
        batches.append((jnp.concatenate([part, *[part[-1:]] * missing]), len(part)))
    return batches
