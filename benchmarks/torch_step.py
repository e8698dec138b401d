"""The unlearning step in PyTorch, written from the paper and the published networks.

`published` does the work the published way: one latent at a time, one pass through the
backbone for the features and another for the image, each pair judged on its own.
`shared` saves what can be saved without changing the result: a latent's features and
image come from one pass. `batched` also takes all latents at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import torch_networks
from benchmarks.measuring import host_peak
from benchmarks.torch_networks import Tensors, tensors
from guide_jax.models.stylegan2 import Synthesis
from guide_jax.training.losses import Judges, Latents, LossWeights

WAYS = ("published", "shared", "batched")


class Seen(NamedTuple):
    """What one network makes of latents: features and images, NCHW."""

    features: torch.Tensor | None
    images: torch.Tensor


class TorchStep:
    """A student, its optimizer, and the step that moves it."""

    def __init__(
        self,
        way: str,
        network: Synthesis,
        judges: Judges,
        latents: Latents,
        num_pairs: int,
        weights: LossWeights,
        learning_rate: float,
        device: str = "cpu",
    ):
        """Copies networks and latents to PyTorch.

        Args:
            way: of `WAYS`.
            network: our synthesis network, source and start of the student.
            judges: our LPIPS on VGG16 and identity encoder.
            latents: `[1 + N_a + N_g, L, D]`, used in every step.
            num_pairs: 1 + N_a.
            weights: of the losses.
            learning_rate: Adam's.
            device: PyTorch's name of it.

        Raises:
            ValueError: there is no such way, or a network is of another kind.
        """
        if way not in WAYS:
            raise ValueError(f"no way {way!r}; there are {', '.join(WAYS)}")
        torch_networks.check_plain(network)
        self._way, self._weights, self._device = way, weights, device
        # What a pair's comparisons weigh; the last ones have LPIPS alone.
        self._parts = [weights.local] + [weights.adjacency] * (num_pairs - 1)
        self._parts += [None] * (len(latents.student) - num_pairs)
        self._source = tensors(network, device)
        self._student = dict(self._source)
        self.trained: Tensors = {}
        for path, leaf in self._source.items():
            if not path.endswith("noise_const"):
                self.trained[path] = leaf.clone().requires_grad_()
        self._student |= self.trained
        self._lpips = torch_networks.Perceptual(judges.lpips, device)
        self._identity = torch_networks.Identity(judges.identity, device)
        self._latents = [
            torch.tensor(np.asarray(w), device=device)
            for w in (latents.student, latents.source)
        ]
        self._adam = torch.optim.Adam(self.trained.values(), lr=learning_rate)

    def __call__(self, steps: int) -> None:
        """Takes steps, and waits for the last."""
        for _ in range(steps):
            self._adam.zero_grad()
            loss = self.loss()
            loss.backward()
            self._adam.step()
        loss.item()  # waits

    def figures(self) -> tuple[float, float]:
        """Returns loss and length of its gradient where the student is, in float32."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self._adam.zero_grad()
            loss = self.loss()
            loss.backward()
        squares = [leaf.grad.double().square().sum() for leaf in self.trained.values()]
        return loss.item(), torch.stack(squares).sum().sqrt().item()

    def peak(self) -> int | None:
        """Returns the bytes that a step needs at most beyond those held before it."""
        if self._device == "cpu":
            return host_peak(self)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self(1)
        return torch.cuda.max_memory_allocated() - before

    def loss(self) -> torch.Tensor:
        """Returns the step's loss at the student as it is."""
        student, source = self._latents
        size = len(student) if self._way == "batched" else 1
        total = 0
        for i in range(0, len(student), size):
            part = slice(i, i + size)
            total = total + self._part(student[part], source[part], self._parts[part])
        return total

    def _part(self, w: torch.Tensor, w_source: torch.Tensor, parts: list):
        pairs = sum(part is not None for part in parts)
        mine = self._see(self._student, w, pairs > 0)
        with torch.no_grad():  # nothing of the source is trained
            theirs = self._see(self._source, w_source, pairs > 0)
            perceptual = self._lpips.features(theirs.images)
            if pairs:
                identity = self._identity.embed(theirs.images[:pairs])
        lpips = self._lpips.distance(self._lpips.features(mine.images), perceptual)
        total = self._weights.global_ * lpips[pairs:].sum()
        if pairs:
            cosine = (self._identity.embed(mine.images[:pairs]) * identity).sum(1)
            squares = (mine.features[:pairs] - theirs.features[:pairs]).square()
            mse = squares.mean((1, 2, 3))
        for i, part in enumerate(parts[:pairs]):
            pair = part.mse * mse[i] + part.lpips * lpips[i]
            total = total + part.total * (pair + part.identity * (1 - cosine[i]))
        return total

    def _see(self, p: Tensors, w: torch.Tensor, with_features: bool) -> Seen:
        if self._way != "published":
            images, features = torch_networks.synthesis(p, w)
            return Seen(features, images)
        features = torch_networks.synthesis(p, w)[1] if with_features else None
        return Seen(features, torch_networks.synthesis(p, w)[0])


def product(size: int) -> Callable[[int], None]:
    """Returns a function that multiplies two square matrices some times, on the CPU."""
    a, b = torch.randn(2, size, size).unbind()

    def run(times: int) -> None:
        for _ in range(times):
            a @ b

    return run


def has_gpu() -> bool:
    """Tells whether PyTorch can use a GPU."""
    return torch.cuda.is_available()
