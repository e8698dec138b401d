"""Training loop shared by the bundle's networks: Adam with resumable checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from guide_jax.storage.atomic import replace

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
    """Trains for `steps` steps, resuming from the checkpoint in `folder` if it exists.

    The learning rate warms up over the first fiftieth of the steps, then decays to zero
    along a cosine.

    Args:
        loss: the objective; runs under `jax.jit`.
        trainable: the parameters that Adam updates.
        statistics: state that the loss updates (batch-norm statistics), or an empty
            tree.
        frozen: constants of the loss, passed as arguments so that XLA doesn't
            constant-fold them.
        batch_at: step -> arrays; deterministic, so that a resumed run gets the same
            batches as an uninterrupted one.
        steps: total number of steps.
        learning_rate: peak learning rate.
        folder: folder for the checkpoint.

    Returns:
        The trained (trainable, statistics).

    Raises:
        FloatingPointError: a loss term is not finite when a checkpoint is due.
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
    """Atomically replaces the checkpoint, but only if all loss terms are finite."""
    if not all(np.isfinite(value).all() for value in terms.values()):
        raise FloatingPointError(
            f"loss terms are not finite: {terms}; keeping the checkpoint {checkpoint}"
        )
    part = checkpoint.with_suffix(".part")
    ocp.save_pytree(part, state, overwrite=True)
    replace(part, checkpoint)
