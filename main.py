"""Makes a face generator forget one person.

python main.py
python main.py --config=configs/ffhq.py --workdir=runs/mine --config.steps=500
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from guide_jax.errors import InputError
from guide_jax.experiment import run
from guide_jax.unlearn import UnlearningError

CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parent / "configs" / "demo.py"),
    "What to do; configs/default.py explains every field.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results; by default runs/NAME, NAME the config's."
)


def main(argv: list[str]) -> None:
    """Runs what the config says; a user's mistake ends in one line and exit code 2."""
    if len(argv) > 1:
        sys.exit(
            f"error: unknown argument {argv[1]!r}; settings look like --config.steps=50"
        )
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    workdir = Path(WORKDIR.value or f"runs/{config.name}")
    try:
        run(config, workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except UnlearningError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
