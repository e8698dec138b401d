"""The unlearning step in PyTorch, written from the paper and the published networks.

`published` follows the published method: one latent at a time, one pass through the
backbone for the features and a second for the image, losses computed pair by pair.
`shared` takes a latent's features and image from one pass, which does not change the
result. `batched` also processes all latents at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import torch_networks
from benchmarks.measuring import host_peak
from benchmarks.torch_networks import Tensors, tensors
from guide_jax.config_types import LossWeights
from guide_jax.models.stylegan2 import Synthesis
from guide_jax.training.losses import LossNetworks, StepLatents

VARIANTS = ("published", "shared", "batched")


class Synthesised(NamedTuple):
    """A generator's output for a batch of latents: features and images, NCHW."""

    features: torch.Tensor | None
    images: torch.Tensor


class TorchStep:
    """A student, its optimizer, and the training step."""

    def __init__(
        self,
        variant: str,
        network: Synthesis,
        loss_networks: LossNetworks,
        latents: StepLatents,
        num_pairs: int,
        weights: LossWeights,
        learning_rate: float,
        device: str = "cpu",
    ):
        """Copies networks and latents to PyTorch.

        Args:
            variant: one of `VARIANTS`.
            network: our synthesis network: the source, and the student's start.
            loss_networks: ours, LPIPS on VGG16 and the identity encoder.
            latents: `[1 + N_a + N_g, L, D]`, used in every step.
            num_pairs: 1 + N_a.
            weights: of the losses.
            learning_rate: Adam's.
            device: PyTorch's name of the device.

        Raises:
            ValueError: `variant` is unknown, or a network is of an unsupported kind.
        """
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; use {', '.join(VARIANTS)}")
        torch_networks.check_plain(network)
        self._variant, self._weights, self._device = variant, weights, device
        # Each pair's loss weights; None for the global pairs, which have LPIPS only.
        self._parts = [weights.local] + [weights.adjacency] * (num_pairs - 1)
        self._parts += [None] * (len(latents.student) - num_pairs)
        self._source = tensors(network, device)
        self._student = dict(self._source)
        self.trained: Tensors = {}
        for path, leaf in self._source.items():
            if not path.endswith("noise_const"):
                self.trained[path] = leaf.clone().requires_grad_()
        self._student |= self.trained
        self._lpips = torch_networks.Perceptual(loss_networks.lpips, device)
        self._identity = torch_networks.Identity(loss_networks.identity, device)
        self._latents = [
            torch.tensor(np.asarray(w), device=device)
            for w in (latents.student, latents.source)
        ]
        self._adam = torch.optim.Adam(self.trained.values(), lr=learning_rate)

    def __call__(self, steps: int) -> None:
        """Runs `steps` steps and waits for the last."""
        for _ in range(steps):
            self._adam.zero_grad()
            loss = self.loss()
            loss.backward()
            self._adam.step()
        loss.item()  # waits for the device

    def figures(self) -> tuple[float, float]:
        """Returns the current student's loss and gradient norm, in full float32."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self._adam.zero_grad()
            loss = self.loss()
            loss.backward()
        squares = [leaf.grad.double().square().sum() for leaf in self.trained.values()]
        return loss.item(), torch.stack(squares).sum().sqrt().item()

    def peak(self) -> int | None:
        """Returns a step's peak memory in bytes, beyond what was held before it.

        None if the system does not report it.
        """
        if self._device == "cpu":
            return host_peak(self)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self(1)
        return torch.cuda.max_memory_allocated() - before

    def loss(self) -> torch.Tensor:
        """Returns the current student's loss."""
        student, source = self._latents
        size = len(student) if self._variant == "batched" else 1
        total = 0
        for i in range(0, len(student), size):
            part = slice(i, i + size)
            total = total + self._part(student[part], source[part], self._parts[part])
        return total

    def _part(self, w: torch.Tensor, w_source: torch.Tensor, parts: list):
        pairs = sum(part is not None for part in parts)
        student = self._synthesise(self._student, w, pairs > 0)
        with torch.no_grad():  # the source is frozen
            source = self._synthesise(self._source, w_source, pairs > 0)
            perceptual = self._lpips.features(source.images)
            if pairs:
                identity = self._identity.embed(source.images[:pairs])
        lpips = self._lpips.distance(self._lpips.features(student.images), perceptual)
        total = self._weights.global_ * lpips[pairs:].sum()
        if pairs:
            cosine = (self._identity.embed(student.images[:pairs]) * identity).sum(1)
            squares = (student.features[:pairs] - source.features[:pairs]).square()
            mse = squares.mean((1, 2, 3))
        for i, part in enumerate(parts[:pairs]):
            pair = part.mse * mse[i] + part.lpips * lpips[i]
            total = total + part.total * (pair + part.identity * (1 - cosine[i]))
        return total

    def _synthesise(
        self, p: Tensors, w: torch.Tensor, with_features: bool
    ) -> Synthesised:
        if self._variant != "published":
            images, features = torch_networks.synthesis(p, w)
            return Synthesised(features, images)
        features = torch_networks.synthesis(p, w)[1] if with_features else None
        return Synthesised(features, torch_networks.synthesis(p, w)[0])


def product(size: int) -> Callable[[int], None]:
    """Returns a function that multiplies two matrices `times` times, on the CPU."""
    a, b = torch.randn(2, size, size).unbind()

    def run(times: int) -> None:
        for _ in range(times):
            a @ b

    return run


def has_gpu() -> bool:
    """Returns whether PyTorch can use a GPU."""
    return torch.cuda.is_available()
