"""The training loop: the student learns to forget, while the source stays frozen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from guide_jax.config_types import Training
from guide_jax.console import Console
from guide_jax.errors import UnlearningError
from guide_jax.models.edited import edited
from guide_jax.models.generator import (
    TRAINABLE,
    Generator,
    ImagePass,
    mean_style,
)
from guide_jax.training import accumulate, distributed
from guide_jax.training.checkpoint import TrainStateStore
from guide_jax.training.context import initial_state, make_context
from guide_jax.training.losses import LossNetworks
from guide_jax.training.sharding import DeviceGroup, make_sharded_step
from guide_jax.training.step import make_step

Tree = Any
SHOWN = ("total", "local", "adjacency", "global", "id")  # beside the progress bar


def _ignore(step: int, terms: dict[str, float]) -> None:
    """Does nothing with a step's terms."""


class Trainer:
    """Makes a generator forget people, one per call, with a step compiled only once."""

    def __init__(
        self,
        generator: Generator,
        loss_networks: LossNetworks,
        settings: Training,
        *,
        devices: DeviceGroup | None = None,
        console: Console | None = None,
    ):
        """Prepares the step.

        Args:
            generator: the original generator, which is not changed.
            loss_networks: LPIPS and the identity encoder.
            settings: the training's settings.
            devices: the devices that share each step; by default, JAX's first device.
            console: shows the progress bar.
        """
        self._generator, self._settings = generator, settings
        self._devices, self._console = devices or DeviceGroup(), console or Console()
        self._context = make_context(
            generator,
            loss_networks,
            settings.weights,
            settings.learning_rate,
            settings.compute,
            settings.compat,
        )
        self._constants = self._devices.replicate(self._context.constants())
        self._step = self._make_step()
        self._show = ImagePass(generator, 1)
        self._in_step = False  # other processes may wait inside a step

    def _make_step(self) -> Callable:
        settings, devices = self._settings, self._devices
        sampling = settings.sampling
        if settings.erase:  # takes no steps
            return make_step(self._context, sampling)
        accumulates, reason = accumulate.is_needed(
            settings.gradient_accumulation,
            sampling,
            self._generator,
            devices,
        )
        if reason:
            self._console.say(reason)
        if accumulates:
            return accumulate.make_accumulating_step(self._context, sampling, devices)
        if len(devices.devices) > 1:
            return make_sharded_step(self._context, sampling, devices)
        return make_step(self._context, sampling)

    def __call__(
        self,
        w_u: np.ndarray,
        w_target: np.ndarray,
        *,
        changes: np.ndarray | None = None,
        on_step: Callable[[int, dict[str, float]], None] = _ignore,
        state: TrainStateStore | None = None,
    ) -> Generator:
        """Makes a copy of the generator forget one person's codes.

        Args:
            w_u: codes to forget `[P, L, D]`.
            w_target: their targets `[P, L, D]`.
            changes: how codes change, `[L, D, D]`, if the method is to erase.
            on_step: called with each step's index and terms, one step late.
            state: stores checkpoints. If it holds one, training resumes from there, and
                earlier steps are not reported to `on_step` again.

        Returns:
            A new generator with its own synthesis network.

        Raises:
            UnlearningError: a loss, a gradient, or the trained generator's image, is
                not finite. The message names the step, the terms and the checkpoint.
        """
        settings = self._settings
        begin = self._fresh_state(jax.random.key(settings.seed))
        begin = state.load(begin) if state else begin
        first, every = int(begin["step"]), state.every if state else 0
        if changes is not None:
            begin["student"] = self._edited(changes)
        order = _Order(w_u, w_target, begin["key"], first, settings.steps, every)
        with self._console.bar("forgetting", "step", settings.steps, first) as bar:
            some = first < settings.steps
            bar.set_postfix_str("compiling the step" if some else "without training")

            def report(step: int, terms: dict[str, float]) -> None:
                if step == first:
                    bar.unpause()  # leave compilation out of the time estimate
                bar.update()
                shown = [name for name in SHOWN if name in terms]
                bar.set_postfix({name: f"{terms[name]:.3f}" for name in shown})
                on_step(step, terms)

            save = state.save if state else None
            try:
                student = self._take(order, begin, report, save)
            except UnlearningError as error:
                raise UnlearningError(f"{error}; {_last_good(state)}") from error
        return self._with_student(student)

    def _edited(self, changes: np.ndarray) -> Tree:
        """Returns the parameters of a generator that reads codes as if changed."""
        w_avg = mean_style(self._generator)
        synthesis = edited(self._generator.synthesis, changes, w_avg)
        student = nnx.split(synthesis, TRAINABLE, ...)[1]
        return self._devices.replicate(jax.tree.map(jnp.copy, student))

    def _with_student(self, student: Tree) -> Generator:
        unlearned = nnx.clone(self._generator)
        # A copy, so that nothing is shared with the original, not even the stored
        # noise.
        frozen = self._context.frozen
        unlearned.synthesis = nnx.merge(self._context.graph, student, frozen, copy=True)
        return unlearned

    # With other processes ------------------------------------------------------------

    def follow(self) -> None:
        """Takes part in process 0's steps until it closes; for all other processes."""
        while True:
            try:
                # A new state each time, because the steps overwrite it.
                begin = self._fresh_state(jax.random.key(0))
                if self._take(self._stop_order(), begin) is None:
                    return
            except UnlearningError:
                pass  # process 0 gets the same error and reports it

    def close(self) -> None:
        """Ends `follow` in the other processes, unless they wait inside a step."""
        if not self._in_step:
            _broadcast(self._stop_order())

    def _stop_order(self) -> "_Order":
        w = np.zeros((1, self._generator.num_ws, self._generator.w_dim), np.float32)
        return _Order(w, w, np.asarray(jax.random.key_data(jax.random.key(0))))

    # The steps -----------------------------------------------------------------------

    def _take(
        self,
        order: "_Order",
        state: Tree,
        report: Callable[[int, dict[str, float]], None] = _ignore,
        save: Callable[[Tree], None] | None = None,
    ) -> Tree | None:
        """Takes the steps that process 0 orders.

        Args:
            order: the order; process 0's is used everywhere.
            state: the train state before step `order.first`; process 0's is used
                everywhere.
            report: called with a step's index and terms.
            save: called with a train state on the host.

        Returns:
            The student's parameters, or None if the order is to stop.
        """
        order = _broadcast(order)
        if order.steps < 0:
            return None
        self._in_step = True
        if order.first:
            state = distributed.broadcast(state)
        try:
            student = self._steps(order, state, report, save)
        except UnlearningError:  # raised in all processes alike
            self._in_step = False
            raise
        self._in_step = False
        return student

    def _steps(self, order, state, report, save) -> Tree:
        first, steps, every = (int(x) for x in (order.first, order.steps, order.every))
        devices = self._devices
        student, opt_state = devices.replicate((state["student"], state["opt_state"]))
        codes = None
        in_turn = 0 < self._settings.codes_per_step < len(order.w_u)
        key = devices.replicate(jax.random.wrap_key_data(order.key))
        # Terms are read one step late, so that no step waits for the host.
        waiting: list[tuple[int, dict[str, jax.Array]]] = []

        def read(late: int) -> None:
            while len(waiting) > late:
                step, terms = waiting.pop(0)
                report(step, _checked(step, person_terms(jax.device_get(terms))))

        for i in range(first, steps):
            if codes is None or in_turn:
                codes = devices.replicate(_codes_of(order, i, self._settings))
            with jax.default_matmul_precision(self._settings.compute.precision):
                student, opt_state, terms = self._step(
                    student, opt_state, self._constants, *codes, key, np.int32(i)
                )
            waiting.append((i, terms))
            due = every > 0 and (i + 1) % every == 0 and i + 1 < steps
            read(0 if due else 1)
            if due:
                self._check_image(student, order.w_u, i + 1)
                if save:
                    state = _state(i + 1, order.key, student, opt_state)
                    save(jax.device_get(state))
        read(0)
        # A step's loss is measured before its update, so the last update is unchecked.
        self._check_image(student, order.w_u, steps)
        return devices.first(student)

    def _fresh_state(self, key: jax.Array) -> Tree:
        student, opt_state = initial_state(self._context, self._constants["source"])
        return _state(0, jax.random.key_data(key), student, opt_state)

    def _check_image(self, student: Tree, w_u: np.ndarray, steps: int) -> None:
        unlearned = self._with_student(self._devices.first(student))
        if not np.isfinite(self._show(unlearned, w_u)).all():
            raise UnlearningError(
                f"the trained generator's images are not finite after {steps} steps, so"
                " it was not saved; try a lower config.optimizer.learning_rate"
            )


class _Order(NamedTuple):
    """Process 0's instructions to the rest: which codes, and which steps."""

    w_u: np.ndarray
    w_target: np.ndarray
    key: np.ndarray
    first: int = 0
    steps: int = -1  # below 0: stop
    every: int = 0  # steps between two checkpoints


def _broadcast(order: _Order) -> _Order:
    """Returns process 0's order in all processes."""
    # All processes must broadcast arrays of the same shapes.
    count = int(distributed.broadcast(np.int32(len(order.w_u))))
    if count != len(order.w_u):
        blank = np.zeros((count, *order.w_u.shape[1:]), np.float32)
        order = order._replace(w_u=blank, w_target=blank)
    return distributed.broadcast(jax.tree.map(np.asarray, order))


def _codes_of(
    order: _Order, step: int, settings: Training
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codes that a step takes, and their targets, `[P, L, D]` each.

    A random order of all codes is repeated, so that each gets its turn.
    """
    count, per_step = len(order.w_u), settings.codes_per_step
    if not 0 < per_step < count:
        return order.w_u, order.w_target
    turns = np.random.default_rng(settings.seed).permutation(count)
    rows = turns[np.arange(step * per_step, (step + 1) * per_step) % count]
    return order.w_u[rows], order.w_target[rows]


def _checked(step: int, terms: dict[str, float]) -> dict[str, float]:
    """Returns a step's terms without its gradient's norm, if all are finite."""
    for name, what in (("total", "loss"), ("gradient", "norm of the gradient")):
        if not np.isfinite(terms.get(name, 0.0)):
            each = ", ".join(f"{key} {value:.4g}" for key, value in terms.items())
            raise UnlearningError(
                f"the {what} is {terms[name]} at step {step} ({each}), so no result was"
                " saved; try a lower config.optimizer.learning_rate"
            )
    return {name: value for name, value in terms.items() if name != "gradient"}


def _last_good(state: TrainStateStore | None) -> str:
    """Names the last checkpoint, which holds finite numbers only."""
    if state is None or state.step is None:
        return "there is no checkpoint before that"
    return f"the last good checkpoint, of {state.step} steps, is {state.path}"


def _state(
    step: int, key: np.ndarray | jax.Array, student: Tree, opt_state: Tree
) -> Tree:
    return {
        "step": np.asarray(step, np.int64),
        "key": np.asarray(key),
        "student": student,
        "opt_state": opt_state,
    }


def person_terms(terms: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns terms as floats; arrays are reduced to the first own pair's value."""
    return {
        name: float(value if np.ndim(value) == 0 else value[0])
        for name, value in terms.items()
    }
