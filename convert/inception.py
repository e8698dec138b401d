"""FID's InceptionV3: `pt_inception-2015-12-05-6726825d.pth`."""

import numpy as np

from convert.arcface import BATCH_NORM
from convert.rules import ConversionError, Family, Rule, StateDict

CLASSES = 1008  # torchvision's own weights have 1000 and give different FID values
LAST = "Mixed_7c.branch_pool.conv.weight"
UNIT = r"(Conv2d_\w+|Mixed_\w+\.branch\w+)"


def config(state: StateDict) -> dict:
    """Returns `Inception`'s arguments: none.

    Raises:
        ConversionError: the class count differs, as in torchvision's own weights,
            with which FID is not measured.
    """
    shape = np.shape(state.get("fc.weight", np.empty((CLASSES, 0))))
    if shape[:1] != (CLASSES,):
        raise ConversionError(
            f"'fc.weight' has shape {list(shape)}, but FID's network has {CLASSES}"
            " classes; use pt_inception-2015-12-05-6726825d.pth from"
            " mseitzer/pytorch-fid"
        )
    return {}


INCEPTION = Family(
    kind="inception",
    title="FID's InceptionV3 (pt_inception-2015-12-05-6726825d.pth)",
    recognises=lambda state: LAST in state,
    config=config,
    rules=[
        Rule(
            rf"{UNIT}\.conv\.weight",
            lambda match: f"{match[1].lower()}.conv.kernel",
            "conv",
        ),
        *(
            Rule(
                rf"{UNIT}\.bn\.{theirs}",
                lambda match, ours=ours: f"{match[1].lower()}.bn.{ours}",
            )
            for theirs, ours in BATCH_NORM.items()
        ),
        Rule(rf"{UNIT}\.bn\.num_batches_tracked", None),
        # The classifiers are dropped: FID compares the last one's input features.
        Rule(r"fc\.(weight|bias)", None),
        Rule(r"AuxLogits\..+", None),
    ],
)
