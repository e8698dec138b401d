"""Records facenet-pytorch's MTCNN outputs with generated weights, for tests.

    pip install facenet-pytorch==2.6.0 torchvision
    python tests/data/record_mtcnn.py

`mtcnn.npz` then holds, in PyTorch's layouts, the outputs for `mtcnn_rule.crops()`:

    pnet.scores [3, 19, 16], pnet.boxes [3, 4, 19, 16]  for [:, :, :47, :42]
    rnet.scores [3], rnet.boxes [3, 4]                  for [:, :, :24, :24]
    onet.scores [3], onet.boxes [3, 4], onet.points [3, 10]

and for the full detection in `mtcnn_rule.picture()` with `mtcnn_rule.DETECTION`:

    boxes [N, 4], scores [N], points [N, 5, 2], best score first
"""

import sys
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from facenet_pytorch.models.utils.detect_face import detect_face

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "support"))
import mtcnn_rule as rule  # noqa: E402


def main():
    """Records all outputs in `mtcnn.npz`."""
    nets = {}
    for name, network in (("pnet", PNet), ("rnet", RNet), ("onet", ONet)):
        nets[name] = network(pretrained=False).eval()
        state = {k: torch.from_numpy(v) for k, v in rule.weights(name).items()}
        nets[name].load_state_dict(state)
    crops = torch.from_numpy(rule.crops())
    found = {}
    with torch.no_grad():
        boxes, scores = nets["pnet"](crops[:, :, :47, :42])
        found |= {"pnet.boxes": boxes, "pnet.scores": scores[:, 1]}
        boxes, scores = nets["rnet"](crops[:, :, :24, :24])
        found |= {"rnet.boxes": boxes, "rnet.scores": scores[:, 1]}
        boxes, points, scores = nets["onet"](crops)
        found |= {"onet.boxes": boxes, "onet.scores": scores[:, 1]}
        found["onet.points"] = points
        settings = rule.DETECTION
        (boxes,), (points,) = detect_face(
            rule.picture(),
            settings["min_face"],
            *nets.values(),
            settings["thresholds"],
            settings["factor"],
            torch.device("cpu"),
        )
    found = {name: x.numpy() for name, x in found.items()}
    boxes, points = np.float32(boxes), np.float32(points)
    found |= {"boxes": boxes[:, :4], "scores": boxes[:, 4], "points": points}
    np.savez_compressed(HERE / "mtcnn.npz", **found)
    for name, x in found.items():
        print(name, x.shape)


if __name__ == "__main__":
    main()
