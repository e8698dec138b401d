"""One training loop for every network of the bundle: Adam, checkpoints, resume."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from guide_jax.storage.network_file import put

Tree = Any
# (trainable, statistics, frozen, batch) -> (loss, (statistics, terms by name))
Loss = Callable[[Tree, Tree, Tree, Tree], tuple[jax.Array, tuple[Tree, dict]]]
SAVE_EVERY_S = 120.0


def fit(
    loss: Loss,
    trainable: Tree,
    statistics: Tree,
    frozen: Tree,
    batch_at: Callable[[int], Tree],
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
) -> tuple[Tree, Tree]:
    """Trains for `steps` steps, from the checkpoint in `folder` on if there is one.

    The learning rate warms up over the first fiftieth and falls to zero along a cosine.

    Args:
        loss: the objective; runs under `jax.jit`.
        trainable: what Adam changes.
        statistics: what the loss itself renews (batch-norm statistics), or an empty
            tree.
        frozen: constants of the loss, passed as arguments so that XLA doesn't fold
            them.
        batch_at: step -> arrays; the same for the same step, so that a resumed run sees
            what an uninterrupted one would.
        steps: how many.
        learning_rate: at its highest.
        folder: for the checkpoint.

    Returns:
        The trained (trainable, statistics).
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, steps // 50), steps
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = {
        "step": np.zeros((), np.int64),
        "trainable": trainable,
        "statistics": statistics,
        "opt_state": tx.init(trainable),
    }
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        state = ocp.load_pytree(checkpoint, state)

    @jax.jit
    def train_step(trainable, statistics, opt_state, frozen, batch):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (_, (statistics, terms)), grads = gradient(trainable, statistics, frozen, batch)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(trainable, updates), statistics, opt_state, terms

    first = int(state["step"])
    saved_at, averages = time.monotonic(), {}
    with tqdm(range(first, steps), initial=first, total=steps, mininterval=10) as bar:
        for i in bar:
            *new, terms = train_step(
                state["trainable"],
                state["statistics"],
                state["opt_state"],
                frozen,
                batch_at(i),
            )
            state = dict(
                zip(("trainable", "statistics", "opt_state"), new, strict=True),
                step=np.asarray(i + 1, np.int64),
            )
            for name, value in terms.items():
                averages[name] = 0.98 * averages.get(name, value) + 0.02 * value
            if i % 10 == 0:
                bar.set_postfix({k: f"{float(v):.4f}" for k, v in averages.items()})
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                _save(checkpoint, state, terms)
                saved_at = time.monotonic()
    if first < steps:
        _save(checkpoint, state, terms)
    return state["trainable"], state["statistics"]


def _save(checkpoint: Path, state: Tree, terms: dict) -> None:
    """Puts a checkpoint in the last one's place, once it is whole and if it is good."""
    if not all(np.isfinite(value).all() for value in terms.values()):
        raise FloatingPointError(f"not finite: {terms}; {checkpoint} is kept")
    part = checkpoint.with_suffix(".part")
    ocp.save_pytree(part, state, overwrite=True)
    put(part, checkpoint)
