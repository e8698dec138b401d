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


class Others(NamedTuple):
    """Other people, by the original generator and by the one that forgot.

    Attributes:
        before: unit-norm identity embeddings `[N, E]`.
        after: the same latents' `[N, E]`.
        lpips: of each pair of pictures `[N]`.
        shown: the first pictures before and after, each `[n, H, W, 3]`.
    """

    before: np.ndarray
    after: np.ndarray
    lpips: np.ndarray
    shown: tuple[np.ndarray, np.ndarray]


class Evaluator:
    """Compares generators, by LPIPS and an identity encoder that was not in the loss.

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

    def others(
        self, before: nnx.Module, after: nnx.Module, w: jax.Array, shown: int
    ) -> Others:
        """Looks at people through two generators, a batch at a time.

        Args:
            before: the original generator.
            after: the one that forgot.
            w: codes `[N, L, D]`.
            shown: how many of their pictures to keep.
        """
        parts = []
        for start in range(0, len(w), BATCH):
            part = w[start : start + BATCH]
            a, b = self.look(before, part), self.look(after, part)
            keep = max(0, shown - start)
            pictures = a.images[:keep], b.images[:keep]
            lpips = self.lpips(a.images, b.images)
            parts.append((a.embeddings, b.embeddings, lpips, *pictures))
        *numbers, shown_a, shown_b = map(np.concatenate, zip(*parts, strict=True))
        return Others(*numbers, (shown_a, shown_b))

    def compare(self, others: Others, person: tuple[Looks, Looks]) -> dict:
        """Measures one unlearning.

        Args:
            others: other people, by the original generator and by the one that forgot.
            person: the forgotten person, before and after.

        Returns:
            The measures by name; `MEASURES` says what each means.
        """
        own = np.sum(others.before * others.after, axis=1)
        pairs = others.before @ others.before.T
        strangers = pairs[np.triu_indices(len(pairs), 1)]
        id_person = np.sum(person[0].embeddings * person[1].embeddings)
        return {
            "id": float(id_person),
            "id_strangers": float(strangers.mean()),
            "lpips_person": float(self.lpips(person[0].images, person[1].images)[0]),
            "id_others": float(own.mean()),
            "id_others_worst": float(own.min()),
            "lpips_others": float(others.lpips.mean()),
            "others": len(own),
        }

    def likeness(self, photo: np.ndarray, reconstruction: Looks) -> dict[str, float]:
        """Says how like the photo `[1, H, W, 3]` its reconstruction is.

        A bad inversion makes the generator forget somebody else.
        """
        embedding = self.embed(photo)
        return {
            "id": float(np.sum(embedding * reconstruction.embeddings)),
            "lpips": float(self.lpips(photo, reconstruction.images)[0]),
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
