"""The demo with the paper's method instead of erasure.

python main.py --config=configs/demo_guide.py
python main.py --config=configs/demo_guide.py --config.target.name=average
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """Returns the demo's settings for the paper's method."""
    config = demo.get_config()
    config.name = "demo_guide"
    use_guide(config)
    return config


def use_guide(config: ConfigDict) -> None:
    """Makes a demo use the paper's method."""
    config.method = "guide"
    config.optimizer.learning_rate = 1e-4
    # Half the paper's steps, so that the demo takes minutes on two cores. The shorter
    # training leaves other people less time to recover, hence the larger global weight.
    config.steps = 500
    config.loss.global_.weight = 3.0
