"""Times flaxmodels' StyleGAN2 synthesis (forward pass) next to ours."""

import statistics

import jax
import numpy as np

from benchmarks.measuring import by_turns, spread
from guide_jax.models.network import jitted
from guide_jax.models.stylegan2 import StyleGAN2

BATCHES = (1, 4)


def lines(generator: StyleGAN2, turns: int) -> list[str]:
    """Returns the lines to print: the times, or why flaxmodels cannot be timed.

    Args:
        generator: our generator, with config-f's channels, 512 at most.
        turns: number of times each network is timed.
    """
    try:
        from flaxmodels.stylegan2 import SynthesisNetwork
    except ModuleNotFoundError as error:
        return [f"flaxmodels: not installed (no module {error.name})"]
    except Exception as error:  # an incompatible version may raise anything
        return [f"flaxmodels: import failed ({_first_line(error)})"]
    theirs = SynthesisNetwork(
        resolution=generator.resolution,
        w_dim=generator.w_dim,
        fmap_max=max(generator.config["channels"]),
    )
    ours = jitted(generator.synthesis, lambda synthesis, w: synthesis(w)[0])
    rng = np.random.default_rng(0)
    result = []
    for batch in BATCHES:
        shape = (batch, generator.num_ws, generator.w_dim)
        w = rng.standard_normal(shape, np.float32)
        try:
            run = _jitted(theirs, w)
            run(w)
        except Exception as error:  # flaxmodels was written for older flax and JAX
            return [*result, f"flaxmodels: does not run ({_first_line(error)})"]
        runs = {"ours": _repeated(ours, w), "theirs": _repeated(run, w)}
        timings = by_turns(runs, turns, 1)
        our_times, their_times = (timings[name].wall for name in runs)
        ratio = statistics.median(their_times) / statistics.median(our_times)
        result.append(
            f"flaxmodels' synthesis, batch {batch}: {spread(their_times)} s, ours"
            f" {spread(our_times)} s, ratio {ratio:.2f}"
        )
    return result


def _jitted(network, w: np.ndarray):
    init = jax.jit(lambda key: network.init(key, w, noise_mode="const"))
    variables = init(jax.random.key(0))
    apply = jax.jit(lambda v, w: network.apply(v, w, noise_mode="const"))
    return lambda w: jax.block_until_ready(apply(variables, w))


def _repeated(run, w: np.ndarray):
    jax.block_until_ready(run(w))  # compiles

    def repeat(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(run(w))

    return repeat


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"
