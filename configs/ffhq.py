"""The paper's 2D experiment: StyleGAN2-FFHQ at 1024 px with published weights.

    python -m convert ffhq.pkl e4e_ffhq_encode.pt vgg16-397923af.pth vgg.pth \
        model_ir_se50.pth CurricularFace_Backbone.pth pnet.npy rnet.npy onet.npy \
        pt_inception-2015-12-05-6726825d.pth --out weights

If converted weights are missing, the run lists them and where they are published.

The paper's scenarios (section 4.1) are sampled people; FFHQ photos, one per person; and
people the generator was not trained on, one folder of photos each, forgotten from the
first photo and tested on the rest:

    python main.py --config=configs/ffhq.py --config.source.count=10
    python main.py --config=configs/ffhq.py --config.source.image=ffhq_photos
    python main.py --config=configs/ffhq.py --config.source.image=people \
        --config.source.scenario=out_of_domain --config.source.align=ffhq

The paper's baseline uses the mean face as target and the local loss only:

    python main.py --config=configs/ffhq.py --config.target.name=average \
        --config.loss.adjacency.count=0 --config.loss.global_.count=0

Delta FID_real needs real photos: set --config.evaluate.fid_real to a folder or to a
file of features such as ffhq_real_feat.npy.
"""

from ml_collections import ConfigDict

from configs import default

E4E = "https://github.com/omertov/encoder4editing"
INSIGHTFACE = "https://github.com/TreB1eN/InsightFace_Pytorch"
PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"


def get_config() -> ConfigDict:
    """Returns the paper's settings on FFHQ."""
    config = default.get_config()
    config.name = "ffhq"
    config.evaluate.align = "mtcnn"
    config.evaluate.fid_samples = 5000
    networks = config.networks
    networks.generator.path = "weights/ffhq"
    networks.generator.files = ("ffhq.pkl",)
    networks.generator.published = (
        "NVlabs, https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"
        "ffhq.pkl"
    )
    networks.encoder.path = "weights/e4e_ffhq_encode_encoder"
    networks.encoder.files = ("e4e_ffhq_encode.pt",)
    networks.encoder.published = E4E
    networks.lpips.path = "weights/lpips"
    networks.lpips.files = ("vgg16-397923af.pth", "vgg.pth")
    networks.lpips.published = (
        "torchvision, https://download.pytorch.org/models/vgg16-397923af.pth, and"
        " PyPI's package lpips 0.1.4, lpips/weights/v0.1/vgg.pth"
    )
    networks.identity.path = "weights/model_ir_se50"
    networks.identity.files = ("model_ir_se50.pth",)
    networks.identity.published = INSIGHTFACE
    networks.judge.path = "weights/CurricularFace_Backbone"
    networks.judge.files = ("CurricularFace_Backbone.pth",)
    networks.judge.published = "https://github.com/HuangYG123/CurricularFace"
    networks.detector.path = "weights/mtcnn"
    networks.detector.files = ("pnet.npy", "rnet.npy", "onet.npy")
    networks.detector.published = (
        f"{INSIGHTFACE}, or by python -m convert --pypi from PyPI's facenet-pytorch"
    )
    networks.inception.path = "weights/pt_inception-2015-12-05-6726825d"
    networks.inception.files = ("pt_inception-2015-12-05-6726825d.pth",)
    networks.inception.published = f"{PYTORCH_FID}/pt_inception-2015-12-05-6726825d.pth"
    return config
