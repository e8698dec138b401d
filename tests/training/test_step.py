"""Compares the unlearning step with values from the published PyTorch code."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from eg3d_golden import contents
from flax import nnx
from golden_data import nchw

from convert import arcface, eg3d, lpips, rules, stylegan2
from guide_jax import target
from guide_jax.config_types import PairWeights
from guide_jax.models.eg3d import cameras
from guide_jax.training import losses
from guide_jax.training.context import make_context
from guide_jax.training.step import take_step

FLAT, SOLID = "guide_step_2d_tiny", "guide_step_eg3d_tiny"
# Two steps of EG3D take minutes.
BOTH = pytest.mark.parametrize(
    "name", [FLAT, pytest.param(SOLID, marks=pytest.mark.full)]
)
# Of each fixture: the features' name, and where the published code has the trained
# parameters.
FEATURES = {FLAT: "mse_b32.x", SOLID: "mse_planes"}
TRAINED = {FLAT: "synthesis.", SOLID: "backbone.synthesis."}
STEPS = {FLAT: 4, SOLID: 2}
PAIRS = ("local", "adj0", "adj1")
SAMPLING = tiny.training().sampling  # N_a = N_g = 2


def steps(count):
    """Parametrizes a test by the fixture and the number of a step, below `count`.

    EG3D's fixture has the terms of two steps, and the update of the first.
    """
    of_eg3d = [(SOLID, step) for step in range(count - 2)]
    cases = [(FLAT, step) for step in range(count)]
    cases += [pytest.param(*case, marks=pytest.mark.full) for case in of_eg3d]
    return pytest.mark.parametrize(("name", "step"), cases)


@functools.cache
def golden(name):
    """Returns the fixture, and the generator and loss networks it was made with."""
    fixture = golden_data.load(name)
    names = fixture.info["weights_from"]
    sources = {part: golden_data.load(name) for part, name in names.items()}
    generator = next(g for part, g in sources.items() if part.startswith("generator"))
    lpips_state = sources["lpips"].weights() | {
        name: array
        for name, array in sources["lpips"].stored.items()
        if name.startswith("lin")
    }
    networks = losses.LossNetworks(
        lpips=rules.convert(lpips_state, lpips.TORCH),
        identity=rules.convert(sources["id"].weights(), arcface.IR_SE),
    )
    if name == SOLID:
        return fixture, rules.convert(contents(generator), eg3d.EG3D), networks
    return fixture, rules.convert(generator.weights(), stylegan2.NVLABS), networks


@functools.cache
def golden_latents(name) -> tuple[losses.StepLatents, dict[str, np.ndarray]]:
    """Returns the fixture's latents, together and by their names in the fixture."""
    fixture, generator, _ = golden(name)
    z = [fixture.input(f"z_{kind}{i}") for kind in ("ra", "rg") for i in range(2)]
    w_r = generator.mapping(np.concatenate(z))
    w_u = jnp.asarray(fixture.input("w_u"))
    w_avg, view, named = generator.mapping.w_avg[...], {}, {}
    if name == SOLID:
        w_avg = jnp.asarray(fixture.input("w_avg"))[0]
        camera = cameras.look_at(0.1, -0.2)
        view = {"camera": jnp.repeat(camera, 5, axis=0)}  # and samples spread evenly
        named = {"cond": cameras.look_at(), "cam": camera}
    w_target = target.extra(w_u, w_avg, fixture.info["d"])
    alpha = jnp.asarray(fixture.info["alphas"], jnp.float32)
    latents = losses.step_latents(w_u, w_target, w_r[:2], alpha, w_r[2:], view)
    named["w_target"] = w_target
    for i in range(2):
        named |= {f"w_ra{i}": w_r[i : i + 1], f"w_rg{i}": w_r[2 + i : 3 + i]}
        named[f"w_u_adj{i}"] = latents.student[1 + i : 2 + i]
        named[f"w_target_adj{i}"] = latents.source[1 + i : 2 + i]
    return latents, named


@functools.cache
def golden_run(name, compute=losses.FLOAT32):
    """Takes the production step several times.

    Returns:
        The initial parameters, and the gradients, parameters and terms of each step.
        The gradients are recovered from Adam's first moment, which is 0.9 times the
        previous one plus 0.1 times the gradient.
    """
    fixture, generator, networks = golden(name)
    weights = PairWeights(
        mse=fixture.info["lambdas"]["mse"],
        lpips=fixture.info["lambdas"]["lpips"],
        identity=fixture.info["lambdas"]["id"],
    )
    weights = losses.LossWeights(weights, weights)
    context = make_context(generator, networks, weights, fixture.info["lr"], compute)
    latents, _ = golden_latents(name)
    step = jax.jit(lambda s, o, c, x: take_step(context, s, o, c, x, 1, SAMPLING))
    student, opt_state = context.source, context.optimizer.init(context.source)
    start, grads, students, terms = student, [], [], []
    for _ in range(STEPS[name]):
        mu = opt_state[0].mu
        student, opt_state, step_terms = step(
            student, opt_state, context.constants(), latents
        )
        grads.append(
            jax.tree.map(lambda new, old: 10 * (new - 0.9 * old), opt_state[0].mu, mu)
        )
        students.append(student)
        terms.append(step_terms)
    return start, grads, students, terms


def by_name(name, state) -> dict[str, np.ndarray]:
    """Returns trained parameters by their published names."""
    flat = nnx.to_flat_state(state)
    paths = {".".join(map(str, path)): leaf for path, leaf in flat}
    return {
        TRAINED[name] + path.removeprefix("backbone."): np.asarray(leaf[...])
        for path, leaf in paths.items()
    }


@BOTH
def test_golden_latents(name):
    fixture, _, _ = golden(name)
    _, named = golden_latents(name)
    for output, w in named.items():
        if output in fixture.outputs:
            fixture.check(output, w, atol=5e-5)
    assert {"w_target", "w_u_adj1"} <= named.keys() & fixture.outputs.keys()


@BOTH
def test_golden_images(name):
    fixture, generator, _ = golden(name)
    latents, _ = golden_latents(name)
    atol = 2e-4 if name == FLAT else 4e-4
    view = jax.tree.map(lambda rows: rows[:3], latents.view)
    for kind, w in (("u", latents.student), ("target", latents.source)):
        images = tiny.jitted(
            generator.synthesis, lambda m, w, view: m(w, **view)[0], w[:3], view
        )
        for i, pair in enumerate(PAIRS):
            fixture.check(f"{pair}.img_{kind}", nchw(images[i : i + 1]), atol)


def test_golden_guide_step_2d_tiny_block_differences():
    """Compares what the published code logs besides its loss, before the first step."""
    fixture, generator, _ = golden(FLAT)
    latents, _ = golden_latents(FLAT)
    outputs = []
    for w in (latents.student, latents.source):
        image, activations = generator.synthesis(w[:3])
        outputs.append(activations | {"image": image})
    for name in ("b4.x", "b8.x", "b16.x", "b32.x", "image"):
        difference = np.asarray(outputs[0][name] - outputs[1][name])
        for pair, mse in zip(PAIRS, (difference**2).mean((1, 2, 3)), strict=True):
            published = fixture.info["scalars"][f"step0.{pair}.mse_{name}"]["f64"]
            np.testing.assert_allclose(mse, published, rtol=1e-5, err_msg=name)


@steps(4)
def test_golden_terms(name, step):
    fixture, _, _ = golden(name)
    terms = golden_run(name)[3][step]
    ours = {"local": terms["local"], "adj": terms["adjacency"]}
    ours |= {"global": terms["global"], "total": terms["total"]}
    for i, pair in enumerate(PAIRS):
        ours[f"{pair}.{FEATURES[name]}"] = terms["mse"][i]
        ours[f"{pair}.lpips"] = terms["lpips"][i]
        ours[f"{pair}.id"] = terms["id"][i]
        ours[f"{pair}.sum"] = sum(
            fixture.info["lambdas"][term] * terms[term][i]
            for term in ("mse", "lpips", "id")
        )
    for i in range(2):
        ours[f"global{i}.lpips"] = terms["lpips"][3 + i]
    atol = 5e-6 if step == 0 else 2e-5
    for term, value in ours.items():
        published = fixture.info["scalars"][f"step{step}.{term}"]["f64"]
        np.testing.assert_allclose(value, published, rtol=1e-5, atol=atol, err_msg=term)


def rows(name: str, table: str, step: int) -> dict[str, float]:
    fixture, _, _ = golden(name)
    return {
        row["param"]: row["f64"] for row in fixture.info[table] if row["step"] == step
    }


@steps(3)
def test_golden_gradient_norms(name, step):
    published = rows(name, "grad_l2", step)
    _, grads, _, terms = golden_run(name)
    ours = by_name(name, grads[step])
    assert ours.keys() == published.keys()
    largest = max(published.values())
    for path, value in published.items():
        atol = 1e-4 * largest if path.endswith("noise_strength") else 0.0
        norm = np.linalg.norm(ours[path])
        np.testing.assert_allclose(norm, value, rtol=2e-3, atol=atol, err_msg=path)
    whole = np.linalg.norm(list(published.values()))
    np.testing.assert_allclose(terms[step]["gradient"], whole, rtol=1e-3)


def in_published_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Converts HWIO to OIHW, [in, out] to [out, in], [4, 4, C] to [C, 4, 4]."""
    if array.ndim == 3:
        return array.transpose(2, 0, 1)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


@BOTH
def test_golden_gradient_values(name):
    fixture, _, _ = golden(name)
    largest = max(rows(name, "grad_l2", 0).values())
    for path, gradient in by_name(name, golden_run(name)[1][0]).items():
        part = fixture.part(f"grad0/{path}", in_published_layout(path, gradient))
        error = np.abs(part - fixture.stored[f"grad0/{path}"])
        limit = 2e-3 * np.abs(gradient).max()
        if path.endswith("noise_strength"):
            limit += 1e-4 * largest
        # Float32 may cross Leaky ReLU's kink: one element in fifty may be further off.
        assert np.quantile(error, 0.98) <= limit, path
        assert error.max() <= 10 * limit, path


@steps(3)
def test_golden_parameter_norms(name, step):
    start, _, students, _ = golden_run(name)
    ours, before = by_name(name, students[step]), by_name(name, start)
    after = rows(name, "param_l2_after", step)
    moved = rows(name, "param_delta_l2_after", step)
    assert ours.keys() == after.keys()
    for path, parameter in ours.items():
        norm = np.linalg.norm(parameter)
        np.testing.assert_allclose(norm, after[path], rtol=5e-6, err_msg=path)
        distance = np.linalg.norm(parameter.astype(np.float64) - before[path])
        # The published distance comes from float32 parameters too: 1e-4 steps on
        # values of order 1 are rounded.
        np.testing.assert_allclose(distance, moved[path], rtol=2e-3, err_msg=path)


def test_golden_guide_step_2d_tiny_parameter_displacement():
    fixture, _, _ = golden(FLAT)
    start, _, students, _ = golden_run(FLAT)
    before = by_name(FLAT, start)
    for name, parameter in by_name(FLAT, students[2]).items():
        displacement = in_published_layout(name, parameter - before[name])
        error = np.abs(
            fixture.part(f"delta3/{name}", displacement)
            - fixture.stored[f"delta3/{name}"]
        )
        # Adam moves 3e-4 whatever the gradient's size, so rounding decides where it is
        # almost zero; a noise strength's gradient is a sum that nearly cancels.
        limit = 3e-5 if name.endswith("noise_strength") else 3e-6
        assert np.quantile(error, 0.9) <= limit, name


def relative_error(ours, wanted):
    """Returns the norm of the whole tree's error, relative to that of `wanted`."""
    error = jax.tree.map(np.subtract, ours, wanted)
    return float(optax.tree.norm(error) / optax.tree.norm(wanted))


@pytest.mark.full
def test_golden_guide_step_2d_tiny_in_bfloat16():
    """The loss and gradient are close; the state kept between steps is float32."""
    _, grads, students, terms = golden_run(FLAT, losses.Compute("bfloat16"))
    start, true_grads, true_students, true_terms = golden_run(FLAT)
    leaves = jax.tree.leaves((grads, students, terms))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    for name in ("mse", "lpips", "id", "local", "adjacency", "total"):
        error = np.abs(terms[0][name] / true_terms[0][name] - 1)
        # The random people's LPIPS is 0 before the first step: no relative error.
        assert np.max(error[:3] if np.ndim(error) else error) < 5e-3, name
    assert 1e-3 < relative_error(grads[0], true_grads[0]) < 3e-2
    displacement, true_displacement = (
        jax.tree.map(np.subtract, after[2], start)
        for after in (students, true_students)
    )
    assert relative_error(displacement, true_displacement) < 0.2
