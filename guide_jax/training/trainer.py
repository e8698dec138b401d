"""The unlearning run: a student forgets, step by step, a frozen source remembers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from guide_jax import console
from guide_jax.errors import UnlearningError
from guide_jax.training import distributed
from guide_jax.training.accumulate import make_frugal_step
from guide_jax.training.losses import PLAIN, Compute, Judges, LossWeights
from guide_jax.training.sharding import Team, make_train_step
from guide_jax.training.step import Draws, fresh, make_trainer
from guide_jax.training.train_state import Keeper

Tree = Any
SHOWN = ("total", "local", "adjacency", "global", "id")  # beside the progress bar
PUBLISHED_WEIGHTS = LossWeights()
PUBLISHED_DRAWS = Draws()


class Unlearner:
    """Makes a generator forget one person after another, with one compiled step."""

    def __init__(
        self,
        generator: nnx.Module,
        judges: Judges,
        *,
        learning_rate: float = 1e-4,
        weights: LossWeights = PUBLISHED_WEIGHTS,
        draws: Draws = PUBLISHED_DRAWS,
        frugal: bool = False,
        compute: Compute = PLAIN,
        team: Team | None = None,
        line: int | None = None,
    ):
        """Prepares the step.

        Args:
            generator: every person is forgotten from it; it stays as it is.
            judges: LPIPS and identity networks for the losses.
            learning_rate: Adam's.
            weights: of the losses.
            draws: of the random latents.
            frugal: takes one pair at a time, to save memory.
            compute: how the step's networks are run.
            team: the devices that share each step; by default JAX's first one.
            line: of the terminal, for the progress bar, where others have some too.
        """
        self._generator, self._line = generator, line
        self._team = team or Team()
        self._trainer = make_trainer(generator, judges, weights, learning_rate, compute)
        self._constants = self._team.replicate(self._trainer.constants())
        make = make_frugal_step if frugal else make_train_step
        self._step = make(self._trainer, draws, self._team)
        graph = self._trainer.graph

        @jax.jit
        def image(student, rest, w):
            return nnx.merge(graph, student, rest)(w)[0]

        self._image = image
        self._within = False  # a step, that others may wait in

    def __call__(
        self,
        w_u: jax.Array,
        w_target: jax.Array,
        *,
        steps: int,
        key: jax.Array,
        on_step: Callable[[int, dict[str, float]], None] = lambda step, terms: None,
        keeper: Keeper | None = None,
    ) -> nnx.Module:
        """Makes the generator forget one person.

        Args:
            w_u: the person's code `[1, L, D]`.
            w_target: where it shall go, `[1, L, D]`.
            steps: how many; the paper's is 1000.
            key: step i draws from `jax.random.fold_in(key, i)`.
            on_step: called with each step's number and terms, one step late.
            keeper: keeps the state now and then; a state that it has is gone on from,
                and `on_step` begins there.

        Returns:
            A generator with a synthesis network of its own.

        Raises:
            UnlearningError: a loss, or the image after the last step, is not finite.
        """
        state = keeper.load(self._fresh(key)) if keeper else self._fresh(key)
        first, every = int(state["step"]), keeper.every if keeper else 0
        order = _Order(w_u, w_target, state["key"], first, steps, every)
        with console.bar("forgetting", "step", steps, self._line, first) as bar:
            bar.set_postfix_str("compiling the step")

            def report(step: int, summary: dict[str, float]) -> None:
                if step == first:
                    bar.unpause()  # the compilation is no measure of what is to come
                bar.update()
                bar.set_postfix({name: f"{summary[name]:.3f}" for name in SHOWN})
                on_step(step, summary)

            student = self._take(order, state, report, keeper and keeper.save)
        forgetful = nnx.clone(self._generator)
        # A copy, so that not even the stored noise is shared with the original.
        rest = self._trainer.rest
        forgetful.synthesis = nnx.merge(self._trainer.graph, student, rest, copy=True)
        return forgetful

    # With other processes ------------------------------------------------------------

    def follow(self) -> None:
        """Takes part in all steps of the first process, in one that isn't the first."""
        while True:
            try:
                state = self._fresh(jax.random.key(0))  # anew: the steps overwrite it
                if self._take(self._no_order(), state) is None:
                    return
            except UnlearningError:
                pass  # the first process has it too, and reports it

    def dismiss(self) -> None:
        """Lets the others' `follow` end, unless they wait within a step."""
        if not self._within:
            distributed.agree(self._no_order())

    def _no_order(self) -> "_Order":
        w = np.zeros((1, self._generator.num_ws, self._generator.w_dim), np.float32)
        return _Order(w, w, np.asarray(jax.random.key_data(jax.random.key(0))))

    # The steps -----------------------------------------------------------------------

    def _take(
        self,
        order: "_Order",
        state: Tree,
        report: Callable[[int, dict[str, float]], None] = lambda step, summary: None,
        save: Callable[[Tree], None] | None = None,
    ) -> Tree | None:
        """Takes the steps that the first process orders.

        Args:
            order: the first process's counts.
            state: after so many steps as the order says; of the first process.
            report: called with a step's number and summary.
            save: called with a state on the host.

        Returns:
            The student; None where the order is to end.
        """
        order = distributed.agree(jax.tree.map(np.asarray, order))
        if order.steps < 0:
            return None
        self._within = True
        if order.first:
            state = distributed.agree(state)
        try:
            student = self._steps(order, state, report, save)
        except UnlearningError:  # in all processes alike
            self._within = False
            raise
        self._within = False
        return student

    def _steps(self, order, state, report, save) -> Tree:
        first, steps, every = (int(x) for x in (order.first, order.steps, order.every))
        team = self._team
        student, opt_state = team.replicate((state["student"], state["opt_state"]))
        codes = team.replicate((order.w_u, order.w_target))
        key = team.replicate(jax.random.wrap_key_data(order.key))
        waiting = []  # reading a step's terms one step late doesn't wait for it

        def read(late: int) -> None:
            while len(waiting) > late:
                step, terms = waiting.pop(0)
                report(step, _checked(step, summarise(jax.device_get(terms))))

        for i in range(first, steps):
            with jax.default_matmul_precision(self._trainer.compute.precision):
                student, opt_state, terms = self._step(
                    student, opt_state, self._constants, *codes, key, np.int32(i)
                )
            waiting.append((i, terms))
            due = every > 0 and (i + 1) % every == 0 and i + 1 < steps
            read(0 if due else 1)
            if due:
                self._check_image(student, order.w_u)
                if save:
                    state = _state(i + 1, order.key, student, opt_state)
                    save(jax.device_get(state))
        read(0)
        # A step's loss is measured before its update: this looks at the last one's.
        self._check_image(student, order.w_u)
        return team.first(student)

    def _fresh(self, key: jax.Array) -> Tree:
        student, opt_state = fresh(self._trainer, self._constants["source"])
        return _state(0, jax.random.key_data(key), student, opt_state)

    def _check_image(self, student: Tree, w_u: np.ndarray) -> None:
        student = self._team.first(student)
        if not np.isfinite(self._image(student, self._trainer.rest, w_u)).all():
            raise UnlearningError(
                "training left a generator whose images are not finite: nothing of it"
                " was kept; a lower learning rate may help"
            )


class _Order(NamedTuple):
    """What the first process tells the others: whom, and which steps."""

    w_u: np.ndarray
    w_target: np.ndarray
    key: np.ndarray
    first: int = 0
    steps: int = -1  # below 0: that was all
    every: int = 0  # steps between two states that are kept


def _checked(step: int, summary: dict[str, float]) -> dict[str, float]:
    if not np.isfinite(summary["total"]):
        raise UnlearningError(
            f"the loss is {summary['total']} at step {step}: nothing of it was kept; a"
            " lower learning rate may help"
        )
    return summary


def _state(step: int, key: np.ndarray, student: Tree, opt_state: Tree) -> Tree:
    return {
        "step": np.asarray(step, np.int64),
        "key": np.asarray(key),
        "student": student,
        "opt_state": opt_state,
    }


def summarise(terms: dict[str, np.ndarray]) -> dict[str, float]:
    """Turns a step's terms into plain numbers: of the arrays, the person's own pair."""
    return {
        name: float(value if np.ndim(value) == 0 else value[0])
        for name, value in terms.items()
    }
