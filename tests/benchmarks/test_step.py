"""The step benchmark runs, checks that the work is equal, and counts FLOP correctly."""

import functools
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import against_flaxmodels, arithmetic, measuring, our_step, step
from benchmarks.random_networks import config_f
from guide_jax.models.arcface import IRNet
from guide_jax.models.lpips import LPIPS
from guide_jax.models.stylegan2 import Synthesis
from guide_jax.training.losses import Compute

SIZE = 32
EXACT = Compute("float32", "highest")


@functools.cache
def problem() -> our_step.Problem:
    return our_step.make_problem(SIZE, tiny=True)


def prepared(loss: float, gradient: float = 1.0) -> step.Prepared:
    return step.Prepared(lambda steps: None, loss, gradient, 2.0, None, 3_000_000)


@pytest.mark.full
def test_without_torch_only_ours_is_timed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.torch_step", raising=False)
    monkeypatch.setitem(sys.modules, "flaxmodels", None)
    folder = jax.config.jax_compilation_cache_dir
    step.main(["--tiny", f"--resolution={SIZE}", "--turns=2"])
    out = capsys.readouterr().out
    assert "PyTorch is not installed (pip install torch)" in out
    assert "flaxmodels: not installed" in out
    rows = out[out.index("variant ") :].splitlines()
    assert rows[0].split()[:3] == ["variant", "s/step", "CPU"]
    assert rows[1].split()[0] == "ours"
    assert rows[1].split()[5:7] == ["1.00", "1.00"]
    assert "XLA's temporaries" in rows[2]
    assert jax.config.jax_compilation_cache_dir == folder


@pytest.mark.full
def test_eg3d_is_timed_against_separate_passes(capsys):
    step.main(["--generator=eg3d", "--tiny", f"--resolution={SIZE}", "--turns=1"])
    out = capsys.readouterr().out
    assert "separate: loss off by" in out
    rows = out[out.index("variant ") :].splitlines()
    assert "GFLOP" not in rows[0]
    assert [row.split()[0] for row in rows[1:3]] == ["ours", "separate"]


def test_torch_has_no_eg3d():
    with pytest.raises(SystemExit):
        step.parse(["--generator=eg3d", "--ways", "ours", "published"])


@pytest.fixture(scope="module")
def ours():
    """Returns loss, gradient norm, gradient by path, and the loss a step later."""
    variant = our_step.OurStep(problem(), "ours", Compute())
    variant(1)
    figures = variant.figures()
    mu = nnx.to_flat_state(variant._opt_state[0].mu)
    gradient = {".".join(path): 10 * np.asarray(leaf[...]) for path, leaf in mu}
    variant(1)
    return *figures, gradient, float(variant._terms["total"])


@pytest.mark.parametrize("name", step.TORCH)
def test_the_torch_step_matches_ours(name, request):
    pytest.importorskip("torch")  # before `ours`, which takes half a minute
    ours = request.getfixturevalue("ours")
    from benchmarks import torch_step

    p = problem()
    variant = torch_step.TorchStep(
        name,
        p.generator.synthesis,
        p.loss_networks,
        p.latents(),
        p.pairs,
        p.training.weights,
        p.training.learning_rate,
    )
    loss, norm = variant.figures()
    assert loss == pytest.approx(ours[0], rel=1e-5)
    # A single VGG16 ReLU that flips in float32 changes the norm by 3e-4.
    assert norm == pytest.approx(ours[1], rel=2e-3)
    axes = {4: (2, 3, 1, 0), 3: (1, 2, 0), 2: (1, 0)}
    assert variant.trained.keys() == ours[2].keys()
    for path, wanted in ours[2].items():
        got = variant.trained[path].grad.numpy()
        if path == "b4.const":
            got = got[0]
        got = got.transpose(axes[wanted.ndim]) if wanted.ndim in axes else got
        error = np.linalg.norm(got.reshape(wanted.shape) - wanted)
        assert error < 1e-2 * np.linalg.norm(wanted), path
    variant(1)
    moved, _ = variant.figures()
    assert moved == pytest.approx(ours[3], rel=1e-4)
    assert abs(moved / loss - 1) > 1e-3  # otherwise the previous line proves nothing


def test_variants_that_compute_something_else_are_rejected(capsys):
    variants = {
        "ours": prepared(2.0),
        "accumulating": prepared(2.0),
        "shared": prepared(2.003),
    }
    with pytest.raises(SystemExit, match=r"differs from ours, not timed: shared$"):
        step.compare(variants, EXACT, problem())
    assert "shared: loss off by 1.5e-03, gradient norm off by 0.0e+00" in (
        capsys.readouterr().out
    )
    variants["shared"] = prepared(2.001)
    step.compare(variants, EXACT, problem())
    variants["shared"] = prepared(2.001, 1.02)
    with pytest.raises(SystemExit, match="shared"):
        step.compare(variants, EXACT, problem())
    variants["accumulating"] = prepared(np.nan)
    with pytest.raises(SystemExit, match="accumulating"):
        step.compare(variants, EXACT, problem())


def test_ratios_are_relative_to_the_first_variant():
    variants = {"ours": prepared(1), "shared": prepared(1)}
    timings = {
        "ours": measuring.Timing([1, 2, 9], [4, 4, 4]),
        "shared": measuring.Timing([3, 3, 3], [2, 2, 2]),
    }
    head, *rows = step.table(variants, timings, 8e9, {"float32": (1e10, 4e9)})
    shared = dict(zip(head, rows[1], strict=True))
    assert shared["s/step"] == "3 (3-3)"
    assert (shared["x"], shared["x CPU"]) == ("1.50", "0.50")
    assert (shared["GFLOP/CPU s"], shared["of float32"]) == ("4.0", "100%")
    assert (shared["first s"], shared["cached s"], shared["peak MB"]) == (
        "2.0",
        "-",
        "3",
    )


def test_records_have_the_times_in_milliseconds_and_the_shares_of_the_peaks():
    variants = {"ours": prepared(1), "shared": prepared(1)}
    timings = {
        "ours": measuring.Timing([1, 2, 9], [4, 4, 4]),
        "shared": measuring.Timing([3, 3, 3], [2, 2, 2]),
    }
    _, row = step.variant_records(variants, timings, 8e9, {"float32": (1e10, 4e9)})
    assert (row["variant"], row["ms/step"], row["x"]) == ("shared", 3000, 1.5)
    assert (row["of float32"], row["peak GiB"]) == (1.0, 3e6 / 2**30)
    assert row["XLA's temporaries GiB"] is None


def test_torch_has_no_lpips_at_a_lower_resolution(capsys):
    with pytest.raises(SystemExit):
        step.parse(["--lpips-resolution=32", "--ways", "ours", "published"])
    assert "PyTorch's variants have no --lpips-resolution" in capsys.readouterr().err


def test_variants_take_turns_in_a_rotating_order():
    order = []
    runs = {
        name: functools.partial(lambda name, n: order.append(name), name)
        for name in "abc"
    }
    timings = measuring.by_turns(runs, 3, 2)
    assert "".join(order) == "abcbcacab"
    assert [len(timing.wall) for timing in timings.values()] == [3, 3, 3]


def test_peak_memory_excludes_what_was_held_before():
    held = np.ones(30 << 17)  # 30 MiB
    peak = measuring.host_peak(lambda steps: np.ones(100 << 17).sum())
    if peak is None:
        pytest.skip("this system does not report a process's peak memory")
    assert 95 << 20 < peak < 115 << 20
    assert held.all()


def skeleton(build):
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def test_flop_counts_match_published_figures():
    lpips, identity = skeleton(LPIPS), skeleton(IRNet)
    # VGG16's convolutions: 15.35 GMAC at 224 px; IR-SE50: 6.3 GMAC.
    assert arithmetic.lpips_flop(lpips, 224) == pytest.approx(2 * 15.35e9, rel=1e-3)
    assert arithmetic.identity_flop(identity) == pytest.approx(2 * 6.3e9, rel=0.01)


def test_synthesis_flop_matches_a_count_by_hand():
    """Two blocks of 4 and 8 pixels with 3 and 5 channels, D = 7."""
    synthesis = skeleton(lambda rngs: Synthesis(7, (3, 5), conv_clamp=None, rngs=rngs))
    first = 16 * 9 * 3 * 3 + 7 * 3 + 16 * 3 * 3 + 7 * 3
    up = 16 * 9 * 3 * 5 + 7 * 3
    second = up + 64 * 9 * 5 * 5 + 7 * 5 + 64 * 5 * 3 + 7 * 5
    assert arithmetic.synthesis_flop(synthesis) == 2 * (first + second)


def test_flop_of_a_step_at_1024_pixels():
    synthesis = skeleton(
        lambda rngs: Synthesis(512, config_f(1024), conv_clamp=None, rngs=rngs)
    )
    flop = arithmetic.step_flop(synthesis, skeleton(LPIPS), skeleton(IRNet), 5, 3)
    assert flop == pytest.approx(12.7e12, rel=0.01)  # as in benchmarks/README.md
    half = arithmetic.step_flop(
        synthesis, skeleton(LPIPS), skeleton(IRNet), 5, 3, lpips_resolution=512
    )
    assert half == pytest.approx(5.5e12, rel=0.01)  # the same


class Fake(nn.Module):
    """Has the interface of flaxmodels' synthesis network."""

    resolution: int
    w_dim: int
    fmap_max: int

    @nn.compact
    def __call__(self, w, noise_mode):
        x = nn.Dense(3)(w[:, 0]) if noise_mode == "const" else None
        return jnp.broadcast_to(
            x[:, None, None], (len(w), self.resolution, self.resolution, 3)
        )


class Broken(Fake):
    def __call__(self, w, noise_mode):
        raise TypeError("reshape() has no newshape\nany more")


@pytest.mark.parametrize("network", [Fake, Broken])
def test_flaxmodels_is_timed_if_it_runs(monkeypatch, network):
    module = types.ModuleType("flaxmodels.stylegan2")
    module.SynthesisNetwork = network
    monkeypatch.setitem(sys.modules, "flaxmodels", types.ModuleType("flaxmodels"))
    monkeypatch.setitem(sys.modules, "flaxmodels.stylegan2", module)
    lines = against_flaxmodels.lines(problem().generator, 2)
    if network is Broken:
        assert lines == [
            "flaxmodels: does not run (TypeError: reshape() has no newshape)"
        ]
    else:
        assert [line.split(":")[0] for line in lines] == [
            "flaxmodels' synthesis, batch 1",
            "flaxmodels' synthesis, batch 4",
        ]
        assert all("ratio" in line for line in lines)
