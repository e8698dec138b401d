"""Reproducible random weights and inputs for MTCNN, with facenet-pytorch's names.

As in golden/README.md, each array is generated from its name, so only the published
code's outputs are stored, in data/mtcnn.npz.
"""

import zlib

import numpy as np

SEED = 0
# Tensor name -> shape, for each of the three published files.
SHAPES = {
    "pnet": {
        "conv1": (10, 3, 3, 3), "prelu1": (10,),
        "conv2": (16, 10, 3, 3), "prelu2": (16,),
        "conv3": (32, 16, 3, 3), "prelu3": (32,),
        "conv4_1": (2, 32, 1, 1), "conv4_2": (4, 32, 1, 1),
    },
    "rnet": {
        "conv1": (28, 3, 3, 3), "prelu1": (28,),
        "conv2": (48, 28, 3, 3), "prelu2": (48,),
        "conv3": (64, 48, 2, 2), "prelu3": (64,),
        "dense4": (128, 576), "prelu4": (128,),
        "dense5_1": (2, 128), "dense5_2": (4, 128),
    },
    "onet": {
        "conv1": (32, 3, 3, 3), "prelu1": (32,),
        "conv2": (64, 32, 3, 3), "prelu2": (64,),
        "conv3": (64, 64, 3, 3), "prelu3": (64,),
        "conv4": (128, 64, 2, 2), "prelu4": (128,),
        "dense5": (256, 1152), "prelu5": (256,),
        "dense6_1": (2, 256), "dense6_2": (4, 256), "dense6_3": (10, 256),
    },
}  # fmt: skip
# Full detection settings, chosen so that random networks keep some tens of boxes.
DETECTION = {"min_face": 20, "thresholds": (0.7, 0.15, 0.6), "factor": 0.709}


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([zlib.crc32(key.encode()), SEED])
    return rng.standard_normal(shape).astype(np.float32)


def weights(net: str) -> dict[str, np.ndarray]:
    """Returns one file's state dict."""
    state = {}
    for name, shape in SHAPES[net].items():
        key = f"{net}.{name}"
        if name.startswith("prelu"):
            mean, std = 0.25, 0.1
        else:
            # Box offsets are small fractions of the box size; scores spread widely.
            mean, std = 0, 0.1 if name.endswith("_2") else np.sqrt(2)
            std /= np.sqrt(np.prod(shape[1:]))
            bias = draw(f"{key}.bias", shape[:1])
            state[f"{name}.bias"] = np.float32(0.1) * bias
        n = draw(f"{key}.weight", shape)
        state[f"{name}.weight"] = np.float32(mean) + np.float32(std) * n
    return state


def crops() -> np.ndarray:
    """Returns inputs [3, 3, 48, 48]; smaller inputs are their top-left corners."""
    return np.clip(np.float32(0.5) * draw("input/mtcnn/crops", (3, 3, 48, 48)), -1, 1)


def picture() -> np.ndarray:
    """Returns a [93, 121, 3] uint8 image: random tiles plus noise."""
    tiles = draw("input/mtcnn/tiles", (12, 16, 3)).repeat(8, 0).repeat(8, 1)
    noise = draw("input/mtcnn/noise", (96, 128, 3))
    levels = 127.5 + 50 * tiles + 10 * noise
    return np.rint(levels.clip(0, 255)).astype(np.uint8)[:93, :121]
