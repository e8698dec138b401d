"""The paper's main experiment: EG3D-FFHQ at 512 px, and photos inverted by GOAE.

    python -m convert ffhqrebalanced512-128.pkl w_avg_ffhqrebalanced512-128.pt \
        encoder_FFHQ.pt vgg16-397923af.pth vgg.pth model_ir_se50.pth \
        CurricularFace_Backbone.pth pnet.npy rnet.npy onet.npy \
        pt_inception-2015-12-05-6726825d.pth --out weights

If converted weights are missing, the run lists them and where they are published.

The published table, with seed 0:

| | ID | ID_others | FID_pre | delta FID_real |
|---|---|---|---|---|
| baseline | 0.0818 | 0.4122 | 9.487 | 4.891 |
| GUIDE | 0.0183 | 0.2797 | 7.497 | 3.331 |

These commands rerun it, GUIDE's and the baseline's row (the mean face as target, the
local loss only). `people` has a folder of photos for each person, who is
forgotten from the first photo and tested on the others:

    python main.py --config=configs/eg3d_ffhq.py --config.source.image=people \
        --config.source.scenario=out_of_domain --config.compat=True \
        --config.evaluate.fid_real=ffhq_real_feat.npy
    python main.py --config=configs/eg3d_ffhq.py --config.source.image=people \
        --config.source.scenario=out_of_domain --config.compat=True \
        --config.evaluate.fid_real=ffhq_real_feat.npy \
        --config.target.name=average --config.loss.adjacency.count=0 \
        --config.loss.global_.count=0 --workdir=runs/eg3d_ffhq_baseline

Nobody has run them with the published weights yet. As published, each training step has
a random view, ID and ID_others are means over eleven views, and FID compares faces in
random views. With `config.compat`, noise, samples along rays and GOAE's dropout are
drawn as published; without it, the measures are free of that noise. One difference
stays: the features that the loss compares and the image come from one pass, and so have
the same noise.
"""

from ml_collections import ConfigDict

from configs import ffhq

EG3D = "https://github.com/NVlabs/eg3d"
GUIDE = "https://github.com/KHU-AGI/GUIDE"


def get_config() -> ConfigDict:
    """Returns the paper's settings for EG3D."""
    config = ffhq.get_config()  # the same losses, judge and detector
    config.name = "eg3d_ffhq"
    source = config.source
    source.align = "eg3d"
    source.photos_per_person = 1
    # As published, GOAE's code of the photo is forgotten as it is, and no other.
    source.variants = 0
    source.refine.steps = 0
    networks = config.networks
    networks.generator.path = "weights/ffhqrebalanced512-128"
    networks.generator.files = (
        "ffhqrebalanced512-128.pkl", "w_avg_ffhqrebalanced512-128.pt",
    )  # fmt: skip
    networks.generator.published = (
        f"NVlabs, {EG3D}, and its mean code with {GUIDE} (without that file, the"
        " generator's own is used)"
    )
    networks.encoder.path = "weights/encoder_FFHQ"
    networks.encoder.files = ("encoder_FFHQ.pt",)
    networks.encoder.published = f"GOAE, as {GUIDE} tells"
    return config
