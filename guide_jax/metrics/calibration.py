"""How far judges can be trusted on real photos: thresholds and error rates.

`benchmarks/judges.py` measured them; docs/judges.md names the photos. Without a
calibrated judge, a run only notes reconstructions that hardly resemble their photos
(`experiment/evaluate.py`).
"""

from typing import Any, NamedTuple

from guide_jax.models.dlib_resnet import DlibResNet


class Calibration(NamedTuple):
    """What a judge's similarities mean on real photos.

    Attributes:
        threshold: similarity above which two photos count as the same person. 1 % of
            the pairs of different people exceed it.
        missed: fraction of the same person's pairs that do not exceed it.
        auc: probability that a pair of the same person is more similar than a pair of
            different people.
    """

    threshold: float
    missed: float
    auc: float

    def describe(self) -> str:
        """Returns the threshold with its error rates."""
        return (
            f"same person above {self.threshold:.2f}, which 1 % of different people's"
            f" photos exceed and {self.missed:.0%} of the same person's do not"
        )


# The network of external judge "dlib" and of the bundle's judge, which crops at a fixed
# place instead of detecting the face.
DLIB = Calibration(threshold=0.44, missed=0.03, auc=0.994)
BY_NAME = {
    "dlib": Calibration(threshold=0.43, missed=0.02, auc=0.994),
    "facenet": Calibration(threshold=0.49, missed=0.07, auc=0.982),
}


def calibration_of(name: str, network: Any = None) -> Calibration | None:
    """Returns a judge's calibration, or None if it was never measured.

    Args:
        name: an external judge's name.
        network: the identity encoder, for a judge that is not external.
    """
    if isinstance(network, DlibResNet):
        return DLIB
    return BY_NAME.get(name)
