"""The paper's 2D experiment: StyleGAN2-FFHQ at 1024 px, published weights.

    python -m convert ffhq.pkl vgg16-397923af.pth vgg.pth model_ir_se50.pth \
        CurricularFace_Backbone.pth --out weights
    python main.py --config=configs/ffhq.py --config.source.seed=0

Without the converted weights it says which are missing and where they are published.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the paper's settings on FFHQ."""
    config = default.get_config()
    config.name = "ffhq"
    networks = config.networks
    networks.generator.path = "weights/ffhq"
    networks.generator.published = (
        "ffhq.pkl: NVlabs, https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/"
        "pretrained/ffhq.pkl"
    )
    networks.encoder.path = "weights/e4e_ffhq_encode"
    networks.encoder.published = (
        "e4e_ffhq_encode.pt: https://github.com/omertov/encoder4editing"
    )
    networks.lpips.path = "weights/lpips"
    networks.lpips.published = (
        "vgg16-397923af.pth: https://download.pytorch.org/models/vgg16-397923af.pth,"
        " and vgg.pth: in PyPI's package lpips 0.1.4, lpips/weights/v0.1/vgg.pth"
    )
    networks.identity.path = "weights/model_ir_se50"
    networks.identity.published = (
        "model_ir_se50.pth: https://github.com/TreB1eN/InsightFace_Pytorch"
    )
    networks.judge.path = "weights/CurricularFace_Backbone"
    networks.judge.published = (
        "CurricularFace_Backbone.pth: https://github.com/HuangYG123/CurricularFace"
    )
    return config
