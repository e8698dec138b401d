"""How far each judge is known to be trustworthy on real photos."""

import pytest
import tiny

from guide_jax.metrics import calibration
from guide_jax.metrics.calibration import Calibration, calibration_of
from guide_jax.metrics.judges import ENCODERS


def test_external_judges_are_known_by_their_names():
    assert calibration_of("dlib") == calibration.BY_NAME["dlib"]
    assert calibration_of("facenet") == calibration.BY_NAME["facenet"]
    assert calibration_of("nobody") is None


def test_every_external_judge_is_calibrated():
    assert calibration.BY_NAME.keys() == ENCODERS.keys()


def test_the_main_judge_is_known_by_its_network():
    assert calibration_of("judge", tiny.dlib_resnet()) == calibration.DLIB
    assert calibration_of("judge", tiny.identity()) is None


@pytest.mark.parametrize("each", [calibration.DLIB, *calibration.BY_NAME.values()])
def test_calibrations_tell_people_apart(each):
    assert 0 < each.threshold < 1
    assert 0 <= each.missed < 0.5
    assert 0.5 < each.auc <= 1


def test_a_description_names_the_threshold_and_both_error_rates():
    assert Calibration(0.5, 0.07, 0.9).describe() == (
        "same person above 0.50, which 1 % of different people's photos exceed and 7%"
        " of the same person's do not"
    )
