"""The paper's 2D experiment: StyleGAN2-FFHQ at 1024 px, published weights.

    python -m convert ffhq.pkl vgg16-397923af.pth vgg.pth model_ir_se50.pth \
        CurricularFace_Backbone.pth --out weights
    python main.py --config=configs/ffhq.py --config.source.seed=0

Without the converted weights it says which are missing and where they are published.
People are sampled by their seed: it has no inversion encoder for photos yet.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the paper's settings on FFHQ."""
    config = default.get_config()
    config.name = "ffhq"
    networks = config.networks
    networks.generator.path = "weights/ffhq"
    networks.generator.files = ("ffhq.pkl",)
    networks.generator.published = (
        "NVlabs, https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"
        "ffhq.pkl"
    )
    networks.lpips.path = "weights/lpips"
    networks.lpips.files = ("vgg16-397923af.pth", "vgg.pth")
    networks.lpips.published = (
        "torchvision, https://download.pytorch.org/models/vgg16-397923af.pth, and"
        " PyPI's package lpips 0.1.4, lpips/weights/v0.1/vgg.pth"
    )
    networks.identity.path = "weights/model_ir_se50"
    networks.identity.files = ("model_ir_se50.pth",)
    networks.identity.published = "https://github.com/TreB1eN/InsightFace_Pytorch"
    networks.judge.path = "weights/CurricularFace_Backbone"
    networks.judge.files = ("CurricularFace_Backbone.pth",)
    networks.judge.published = "https://github.com/HuangYG123/CurricularFace"
    return config
