"""flaxmodels' StyleGAN2 synthesis, forward, beside ours."""

import statistics

import jax
import numpy as np

from benchmarks.measuring import by_turns, spread
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.storage.locate import jitted

BATCHES = (1, 4)


def lines(generator: StyleGAN2, turns: int) -> list[str]:
    """Returns lines to print: the times, or why there are none.

    Args:
        generator: ours, of config-f's channels, with 512 at most.
        turns: how often each is timed.
    """
    try:
        from flaxmodels.stylegan2 import SynthesisNetwork
    except ModuleNotFoundError as error:
        return [f"flaxmodels: not installed (no module {error.name})"]
    except Exception as error:  # whatever it does on import
        return [f"flaxmodels: does not import ({_first_line(error)})"]
    theirs = SynthesisNetwork(
        resolution=generator.resolution,
        w_dim=generator.w_dim,
        fmap_max=max(generator.config["channels"]),
    )
    mine = jitted(generator.synthesis, lambda synthesis, w: synthesis(w)[0])
    rng = np.random.default_rng(0)
    found = []
    for batch in BATCHES:
        shape = (batch, generator.num_ws, generator.w_dim)
        w = rng.standard_normal(shape, np.float32)
        try:
            run = _jitted(theirs, w)
            run(w)
        except Exception as error:  # it was written for another flax and JAX
            return [*found, f"flaxmodels: does not run ({_first_line(error)})"]
        timings = by_turns({"ours": _times(mine, w), "its": _times(run, w)}, turns, 1)
        ours, its = (timings[name].wall for name in ("ours", "its"))
        ratio = statistics.median(its) / statistics.median(ours)
        found.append(
            f"flaxmodels' synthesis, batch {batch}: {spread(its)} s, ours"
            f" {spread(ours)} s, ratio {ratio:.2f}"
        )
    return found


def _jitted(network, w: np.ndarray):
    init = jax.jit(lambda key: network.init(key, w, noise_mode="const"))
    variables = init(jax.random.key(0))
    apply = jax.jit(lambda v, w: network.apply(v, w, noise_mode="const"))
    return lambda w: jax.block_until_ready(apply(variables, w))


def _times(run, w: np.ndarray):
    jax.block_until_ready(run(w))  # compiles

    def take(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(run(w))

    return take


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"
