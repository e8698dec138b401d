"""The example forget_one.py, and the public names of guide_jax."""

import importlib.util
from pathlib import Path

import numpy as np
import tiny

import guide_jax

EXAMPLE = Path(guide_jax.__file__).parents[1] / "examples" / "forget_one.py"


def test_the_example_unlearns_measures_and_exports(tmp_path):
    spec = importlib.util.spec_from_file_location("forget_one", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    paths = tiny.save(
        tmp_path / "small",
        generator=tiny.generator(32),
        identity=tiny.identity(0),
        judge=tiny.identity(1),
    )
    changes = {"erase.steps": 2, "evaluate.others": 2, "evaluate.shown": 2}
    changes |= {f"networks.{role}.path": str(path) for role, path in paths.items()}
    measures = example.main(tmp_path, **changes)
    assert measures["people_kept"] == 2
    assert measures["lpips_person"] > 0
    unlearned = guide_jax.load_network(tmp_path / "generator")
    assert isinstance(unlearned, guide_jax.Generator)
    with np.load(tmp_path / "generator.npz") as state:
        np.testing.assert_array_equal(
            state["synthesis.b32.torgb.bias"], unlearned.synthesis.b32.torgb.bias[...]
        )


def test_every_public_name_can_be_imported():
    assert set(guide_jax.__all__) == set(guide_jax._PUBLIC)
    for name in guide_jax.__all__:
        assert getattr(guide_jax, name) is not None
