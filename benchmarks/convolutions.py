"""Compares forms of the convolutions whose forms matter on a CPU, on any device.

    python -m benchmarks.convolutions
    python -m benchmarks.convolutions --tiny

For each convolution, the forms give the same result (compared first) and are timed
alternately, forward or backward. "used" marks the form that the library runs on this
device. The shapes are those of StyleGAN2 (config-f) and MobileStyleGAN at 1024 px.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import measuring, records
from guide_jax.models import conv_gradients, mobilestylegan, ops

BATCH = 5  # latents of a step with N_a = N_g = 2
# Side in pixels of the input, and channels in and out.
UP_SHAPES = ((32, 512, 512), (128, 256, 128), (512, 64, 32))
CONV_SHAPES = ((64, 512, 512), (256, 128, 128), (1024, 32, 32))
DEPTHWISE_SHAPES = ((64, 512, 512), (512, 64, 64))
TINY = ((16, 8, 4),)
TOLERANCE = 1e-3  # relative to the largest value, in full float32


def up_conv_phases(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes `ops.up_conv` for 3x3 kernels without inserted zeros.

    The output pixels of each parity along H and W come from the input by a kernel of
    their own: together one 2x2 convolution with four times the outputs.
    """
    size, outputs = weight.shape[0], weight.shape[-1]
    if size != 3:
        raise ValueError(f"kernels must be 3x3, not {size}x{size}")
    # Output pixel 2i + p sums input pixels i (tap p) and i - 1 (tap p + 2).
    padded = jnp.pad(weight, ((0, 1), (0, 1), (0, 0), (0, 0)))
    taps = padded.reshape(2, 2, 2, 2, -1, outputs)[::-1, :, ::-1]  # [i, p, j, q, I, O]
    kernel = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, -1, 4 * outputs)
    edge = (1, 1)
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), (edge, edge), dimension_numbers=ops.CONV_DIMS
    )
    N, H, W, _ = y.shape
    y = y.reshape(N, H, W, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(N, 2 * H, 2 * W, outputs)[:, :-1, :-1]


def depthwise_grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `mobilestylegan.depthwise` as a grouped convolution."""
    channels = x.shape[-1]
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (1, 1),
        "SAME",
        dimension_numbers=ops.CONV_DIMS,
        feature_group_count=channels,
    )


def depthwise_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `mobilestylegan.depthwise` as shifted products, with XLA's gradient."""
    return mobilestylegan.depthwise.fun(x, kernel)


def plain_conv(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes `ops.conv` with XLA's gradient."""
    return ops._plain_conv(x, weight)


def conv_by_products(x: jax.Array, weight: jax.Array, y_bar: jax.Array):
    """Returns the gradients of `ops.conv`, the weight's as matrix products."""
    (x_bar,) = jax.vjp(lambda x: plain_conv(x, weight), x)[1](y_bar)
    return x_bar, conv_gradients.weight_gradient(x, y_bar, weight.shape[0])


def up_conv_by_products(x: jax.Array, weight: jax.Array, y_bar: jax.Array):
    """Returns the gradients of `ops.up_conv` as matrix products."""
    return conv_gradients.up_conv_gradients(x, weight, y_bar)


def backward(function: Callable) -> Callable:
    """Returns a function (x, weight, y_bar) -> the gradients of both arguments."""
    return lambda x, weight, y_bar: jax.vjp(function, x, weight)[1](y_bar)


def forms(tiny: bool) -> dict[str, tuple[Callable, tuple, dict[str, Callable]]]:
    """Returns what is compared: name -> (the library's function, shapes, forms).

    A form computes the function, or its gradients if the name ends in "backward".
    """
    up, conv, depthwise = ops.up_conv, ops.conv, mobilestylegan.depthwise
    plain_up = ops.up_conv.fun
    every = {
        "up, forward": (
            up,
            UP_SHAPES,
            {"zeros inserted (used)": up, "four phases": up_conv_phases},
        ),
        "up, backward": (
            up,
            UP_SHAPES,
            {
                "used": backward(up),
                "XLA's": backward(plain_up),
                "four phases": backward(up_conv_phases),
                "products": up_conv_by_products,
            },
        ),
        "3x3, backward": (
            conv,
            CONV_SHAPES,
            {
                "used": backward(conv),
                "XLA's": backward(plain_conv),
                "products": conv_by_products,
            },
        ),
        "depthwise, forward": (
            depthwise,
            DEPTHWISE_SHAPES,
            {"shifts (used)": depthwise, "grouped": depthwise_grouped},
        ),
        "depthwise, backward": (
            depthwise,
            DEPTHWISE_SHAPES,
            {
                "row by row (used)": backward(depthwise),
                "XLA's, of shifts": backward(depthwise_shifts),
                "XLA's, of grouped": backward(depthwise_grouped),
            },
        ),
    }
    if tiny:
        every = {name: (fn, TINY, of) for name, (fn, _, of) in every.items()}
    return every


def arguments(function: Callable, shape: tuple[int, int, int], dtype: str, name: str):
    """Returns random arguments of the forms: x, the weight, and y_bar if backward."""
    side, inputs, outputs = shape
    rng = np.random.default_rng(0)

    def draw(*size: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(size, np.float32), dtype)

    x = draw(BATCH, side, side, inputs)
    depthwise = name.startswith("depthwise")
    weight = draw(3, 3, inputs) if depthwise else draw(3, 3, inputs, outputs)
    if not name.endswith("backward"):
        return x, weight
    return x, weight, draw(*jax.eval_shape(function, x, weight).shape)


def difference(a, b) -> float:
    """Returns the largest difference, relative to the largest value, of two results."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(jnp.abs(x - y).max() / jnp.abs(y).max().clip(1e-30)) for x, y in pairs
    )


def check(of: dict[str, Callable], name: str) -> None:
    """Compares the forms on small arrays, in full float32.

    Raises:
        SystemExit: one gives another result.
    """
    function = forms(True)[name][0]
    args = arguments(function, TINY[0], "float32", name)
    with jax.default_matmul_precision("highest"):
        results = {form: jax.jit(run)(*args) for form, run in of.items()}
    first = next(iter(results.values()))
    for form, result in results.items():
        if (off := difference(result, first)) > TOLERANCE:
            raise SystemExit(f"{name}: {form!r} is off by {off:.1e}; not timed")


def repeated(program: Callable, args: tuple) -> Callable[[int], None]:
    """Returns a function that runs a program some times and waits for the last."""

    def run(steps: int) -> None:
        jax.block_until_ready([program(*args) for _ in range(steps)][-1])

    run(1)  # compiles
    return run


def main(argv: list[str] | None = None) -> None:
    """Compares and times the forms, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--steps", type=int, help="per turn; default: 1, on a GPU 20")
    parser.add_argument("--json", type=Path, help="file to append the results to")
    parser.add_argument(
        "--tiny", action="store_true", help="small arrays, to try the script"
    )
    args = parser.parse_args(argv)
    steps = args.steps or (20 if jax.default_backend() == "gpu" else 1)
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}; ms, median (minimum-maximum)")
    for name, (function, shapes, of) in forms(args.tiny).items():
        check(of, name)
        for shape in shapes:
            for dtype in args.dtypes:
                made = arguments(function, shape, dtype, name)
                runs = {
                    form: repeated(jax.jit(partial(run)), made)
                    for form, run in of.items()
                }
                timings = measuring.by_turns(runs, 3, steps)
                for form, timing in timings.items():
                    ms = [1e3 * seconds for seconds in timing.wall]
                    side, *channels = shape
                    print(
                        f"{name:20} {side:4} px {channels} {dtype:8} {form:22}"
                        f" {measuring.spread(ms)}",
                        flush=True,
                    )
                    row = {"convolution": name, "px": side}
                    row |= {"channels": "{} to {}".format(*channels), "dtype": dtype}
                    row |= {"form": form, "ms": statistics.median(ms)}
                    row |= {"device": device, "jax": jax.__version__}
                    row["tiny"] = args.tiny
                    records.append(args.json, {"benchmark": "convolutions"} | row)


if __name__ == "__main__":
    main()
