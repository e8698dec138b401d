"""Records OpenVINO's outputs for the published MobileStyleGAN, for tests.

    pip install openvino==2026.4.1 numpy
    python tests/data/record_openvino.py random_face-2021.7.21.1-py3-none-any.whl

The wheel comes from PyPI. Everything is computed in float32. For `SEEDS`,
`mobilestylegan_openvino.npz` then holds:

    w         [N, D], mapping output for `guide_jax.models.generator.z_of_seed`
    features  [N, 4, 4, 64], every 4th row and column and every 8th channel of "b16.x"
    pixels    [N, 32, 32, 3], every 32nd row and column of the 1024 px image, from 16
    mean, std [N, 3], over the whole image
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import openvino

HERE = Path(__file__).parent
SEEDS = (0, 1)
B16_X = "LeakyRelu_242"  # the graph's name for the last activation at 16 px


def main():
    """Records both seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        data = Path(folder) / "random_face" / "data"
        mapping = compiled(data / "MappingNetwork.xml")
        synthesis = compiled(data / "SynthesisNetwork.xml", B16_X)
        rows = [record(mapping, synthesis, seed) for seed in SEEDS]
    stacked = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    np.savez_compressed(HERE / "mobilestylegan_openvino.npz", **stacked)


def compiled(path, *more_outputs):
    """Returns a graph compiled for float32, with the named layers as extra outputs."""
    core = openvino.Core()
    model = core.read_model(path)
    for operation in model.get_ordered_ops():
        if operation.get_friendly_name() in more_outputs:
            model.add_outputs(operation.output(0))
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def record(mapping, synthesis, seed):
    """Returns the arrays to store for one seed."""
    z = np.random.default_rng(seed).standard_normal((1, 512)).astype(np.float32)
    w = mapping([z])[0]
    image, features = (array.transpose(0, 2, 3, 1) for array in synthesis([w]).values())
    assert image.shape == (1, 1024, 1024, 3), image.shape
    assert features.shape == (1, 16, 16, 512), features.shape
    return {
        "w": w,
        "features": features[:, ::4, ::4, ::8],
        "pixels": image[:, 16::32, 16::32],
        "mean": image.mean((1, 2)),
        "std": image.std((1, 2)),
    }


if __name__ == "__main__":
    main()
