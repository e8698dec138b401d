"""The networks, as flax.nnx modules independent of files and configs."""

from flax import nnx

from guide_jax.models.arcface import IRNet
from guide_jax.models.dlib_resnet import DlibResNet
from guide_jax.models.e4e import E4E
from guide_jax.models.eg3d.generator import EG3D
from guide_jax.models.goae import GOAE
from guide_jax.models.inception import Inception
from guide_jax.models.lpips import LPIPS
from guide_jax.models.mobilestylegan import MobileStyleGAN
from guide_jax.models.mtcnn import MTCNN
from guide_jax.models.stylegan2 import StyleGAN2
from guide_jax.models.w_encoder import WEncoder

# kind, as stored in converted checkpoints -> class
NETWORKS: dict[str, type[nnx.Module]] = {
    network.kind: network
    for network in (
        DlibResNet,
        E4E,
        EG3D,
        GOAE,
        IRNet,
        Inception,
        LPIPS,
        MTCNN,
        MobileStyleGAN,
        StyleGAN2,
        WEncoder,
    )
}
