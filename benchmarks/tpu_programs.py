"""The unlearning step as programs that compile ahead of time for absent devices.

Weights are arguments, of which only shapes are needed, so nothing is allocated.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.our_step import PAPER, make_networks
from guide_jax.config_types import Compute
from guide_jax.models import arcface
from guide_jax.training.context import StepContext, make_context
from guide_jax.training.losses import LossNetworks, StepLatents, term_weights
from guide_jax.training.sharding import AXIS, DeviceGroup, make_sharded_step
from guide_jax.training.step import gradients, make_step

# The step, and parts of it, which show where compilation takes its time.
PROGRAMS = ("step", "pair", "forward", "synthesis", "lpips", "identity")


class PlannedGroup(DeviceGroup):
    """Devices that share a step but need not exist: nothing is copied to them."""

    def __init__(self, devices: Sequence[jax.Device]):
        """Takes the devices of a topology."""
        self.devices = self.local = tuple(devices)
        mesh = Mesh(np.array(devices), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._indices = jax.ShapeDtypeStruct(
            (len(devices),),
            jnp.int32,
            sharding=NamedSharding(mesh, PartitionSpec(AXIS)),
        )

    def replicate(self, tree: Any) -> Any:
        """Returns shapes of arrays that each device has."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated),
            tree,
        )


def skeleton(build: Callable) -> nnx.Module:
    """Returns a network of shapes without values."""
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def lower(
    program: str,
    resolution: int,
    compute: Compute,
    devices: Sequence[jax.Device],
    tiny: bool = False,
) -> jax.stages.Lowered:
    """Traces a program for devices, which need not exist.

    Args:
        program: one of `PROGRAMS`; parts of the step are for one device.
        resolution: image side in pixels.
        compute: numerical settings.
        devices: the devices that share the step; several have an adjacent and a random
            pair each.
        tiny: whether to use narrow networks.
    """
    generator, loss_networks = make_networks(resolution, tiny, skeleton)
    training = PAPER.training
    settings = training.weights, training.learning_rate, compute
    context = make_context(generator, loss_networks, *settings)
    group = PlannedGroup(devices)
    code = jax.ShapeDtypeStruct((1, generator.num_ws, generator.w_dim), jnp.float32)
    if program == "step":
        function, args = _step(context, group, code)
    elif program == "pair":
        function, args = _pair(context, code)
    else:
        sampling = training.sampling
        pairs = 1 + sampling.num_adjacent
        rows = pairs + sampling.num_global
        w = jax.ShapeDtypeStruct((rows, *code.shape[1:]), jnp.float32)
        images = jax.ShapeDtypeStruct((rows, resolution, resolution, 3), jnp.float32)
        function, args = _part(program, context, w, images, pairs)
    with jax.default_matmul_precision(compute.precision):
        return function.lower(*group.replicate(args))


def _step(context: StepContext, group: PlannedGroup, code) -> tuple[Callable, tuple]:
    sampling, count = PAPER.training.sampling, len(group.devices)
    if count > 1:
        sampling = replace(sampling, num_adjacent=count, num_global=count)
        function = make_sharded_step(context, sampling, group)
    else:
        function = make_step(context, sampling)
    opt_state = jax.eval_shape(context.optimizer.init, context.source)
    key = jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    constants = context.constants()
    return function, (context.source, opt_state, constants, code, code, key, number)


def _pair(context: StepContext, code) -> tuple[Callable, tuple]:
    """Returns the addition of one pair's gradient to a sum, and its arguments."""
    weights = term_weights(context.weights, 0, 0)

    def add(student, total, constants, codes):
        latents = StepLatents(codes, codes, {})
        found, values = gradients(context, student, constants, latents, weights)
        return jax.tree.map(jnp.add, total, found), values

    args = context.source, context.source, context.constants(), code
    return jax.jit(add, donate_argnums=(1,)), args


def _part(
    program: str, context: StepContext, w, images, pairs: int
) -> tuple[Callable, tuple]:
    """Returns the gradient of one network, or the synthesis without it, and its args.

    LPIPS and the identity encoder are differentiated with respect to the images.
    """
    graph, leaves = context.loss_networks
    dtype = context.compute.dtype

    def synthesis(student, frozen, w):
        return nnx.merge(context.graph, student, frozen)(w, dtype=dtype)[0]

    def networks(leaves) -> LossNetworks:
        merged = nnx.merge(graph, leaves)
        return LossNetworks(merged["lpips"], merged["identity"])

    def lpips(images, leaves):
        maps = networks(leaves).lpips.raw_features(images, dtype)
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in maps)

    def identity(images, leaves):
        return jnp.sum(arcface.embed(networks(leaves).identity, images)[:, 0])

    def energy(*args):
        return jnp.sum(synthesis(*args) ** 2)

    generator = context.source, context.frozen, w
    parts = {
        "forward": (synthesis, generator),
        "synthesis": (jax.grad(energy), generator),
        "lpips": (jax.grad(lpips), (images, leaves)),
        "identity": (
            jax.grad(identity),
            (jax.ShapeDtypeStruct((pairs, *images.shape[1:]), jnp.float32), leaves),
        ),
    }
    function, args = parts[program]
    return jax.jit(function), args
