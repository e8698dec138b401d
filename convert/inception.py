"""FID's InceptionV3: `pt_inception-2015-12-05-6726825d.pth`."""

import numpy as np

from convert.arcface import BATCH_NORM
from convert.rules import ConversionError, Family, Rule, StateDict

CLASSES = 1008  # torchvision's own weights have 1000, and give other numbers
LAST = "Mixed_7c.branch_pool.conv.weight"
UNIT = r"(Conv2d_\w+|Mixed_\w+\.branch\w+)"


def config(state: StateDict) -> dict:
    """Returns `Inception`'s arguments: none.

    Raises:
        ConversionError: these are torchvision's weights, which FID isn't measured with.
    """
    shape = np.shape(state.get("fc.weight", np.empty((CLASSES, 0))))
    if shape[:1] != (CLASSES,):
        raise ConversionError(
            f"fc.weight has shape {list(shape)}, FID's network tells {CLASSES} classes;"
            " give pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid"
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
        # The classifiers: FID compares what goes into the last one.
        Rule(r"fc\.(weight|bias)", None),
        Rule(r"AuxLogits\..+", None),
    ],
)
