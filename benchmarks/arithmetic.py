"""Counts the FLOP of an unlearning step and measures a device's matrix peak.

Only the networks' convolutions and matrix products are counted, from their shapes, with
two operations per multiply-add. Extra work (zeros inserted between pixels, recomputed
activations) is not useful arithmetic and not counted.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guide_jax.models.arcface import IRNet
from guide_jax.models.lpips import LPIPS, NETS
from guide_jax.models.stylegan2 import Synthesis

MATRIX = {"cpu": (2048, 1), "gpu": (8192, 10)}  # size, consecutive products


def synthesis_flop(network: Synthesis) -> int:
    """Returns the FLOP of synthesising one image."""
    total = 0
    for resolution in network.resolutions:
        block = getattr(network, f"b{resolution}")
        for name in ("conv0", "conv1", "torgb"):
            if not hasattr(block, name):
                continue
            layer = getattr(block, name)
            # conv0 is a transposed convolution, which multiplies each input pixel.
            side = resolution // 2 if name == "conv0" else resolution
            total += 2 * side**2 * layer.weight.size + 2 * layer.affine.weight.size
    return total


def lpips_flop(network: LPIPS, resolution: int) -> int:
    """Returns the FLOP of one image's VGG16 features."""
    total, side = 0, resolution
    for layer, conv in zip(NETS["vgg"], network.convs, strict=True):
        side //= layer.pool or 1
        total += 2 * side**2 * conv.kernel.size
    return total


def identity_flop(network: IRNet) -> int:
    """Returns the FLOP of embedding one crop."""
    side = network.input_size
    total = 2 * side**2 * network.stem.conv.kernel.size
    for block in network.blocks:
        total += 2 * side**2 * block.conv1.kernel.size
        side = -(-side // block.stride)
        total += 2 * side**2 * block.conv2.kernel.size
        if hasattr(block, "shortcut_conv"):
            total += 2 * side**2 * block.shortcut_conv.kernel.size
        if hasattr(block, "se"):
            total += 2 * (block.se.squeeze.kernel.size + block.se.excite.kernel.size)
    return total + 2 * network.head.linear.kernel.size


def step_flop(
    network: Synthesis,
    lpips: LPIPS,
    identity: IRNet,
    latents: int,
    pairs: int,
    lpips_resolution: int | None = None,
) -> int:
    """Returns the useful FLOP of one step.

    The student's synthesis counts three times: forward, gradient with respect to the
    activations, gradient with respect to the weights. The frozen loss networks count
    twice on its images: forward, gradient with respect to the image. The source's
    synthesis and the loss networks on its images are forward only.

    Args:
        network: the student's synthesis network.
        lpips: LPIPS on VGG16.
        identity: the identity encoder in the loss.
        latents: number of latents, 1 + N_a + N_g.
        pairs: number of pairs that have an identity loss, 1 + N_a.
        lpips_resolution: side of LPIPS's images in pixels; by default, the network's.
    """
    images = 4 * synthesis_flop(network)
    images += 3 * lpips_flop(lpips, lpips_resolution or network.resolutions[-1])
    return latents * images + pairs * 3 * identity_flop(identity)


def jax_product(size: int, dtype: str, precision: str) -> Callable[[int], None]:
    """Returns a function that multiplies two square matrices `times` times."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((size, size)), dtype) for _ in range(2))
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))

    def run(times: int) -> None:
        jax.block_until_ready([multiply(a, b) for _ in range(times)])

    return run


def speed(size: int, run: Callable[[int], None], times: int) -> tuple[float, float]:
    """Times a matrix product five times.

    Args:
        size: side of the matrices.
        run: computes the product a given number of times.
        times: products per measurement.

    Returns:
        The best FLOP/s and the best FLOP per CPU-second.
    """
    run(times)
    best, best_cpu = np.inf, np.inf
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        run(times)
        best = min(best, time.perf_counter() - wall)
        best_cpu = min(best_cpu, time.process_time() - cpu)
    flop = 2 * size**3 * times
    return flop / best, flop / best_cpu


def peaks(torch_step: Any, tiny: bool) -> dict[str, tuple[float, float]]:
    """Measures large matrix products.

    Args:
        torch_step: the module with PyTorch's step, or None.
        tiny: whether to multiply small matrices, to try a script.

    Returns:
        By precision, FLOP per second and FLOP per CPU-second.
    """
    size, times = (256, 1) if tiny else MATRIX[jax.default_backend()]
    kinds = {"float32": ("float32", "highest")}
    if jax.default_backend() == "gpu":
        kinds |= {"tf32": ("float32", "tensorfloat32"), "bf16": ("bfloat16", "default")}
    speeds = {}
    for name, (dtype, precision) in kinds.items():
        product = jax_product(size, dtype, precision)
        speeds[name] = speed(size, product, times)
    if torch_step and jax.default_backend() == "cpu":
        theirs = speed(size, torch_step.product(size), times)
        speeds["float32"] = tuple(map(max, speeds["float32"], theirs))
    return speeds
