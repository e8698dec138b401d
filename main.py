"""Makes a face generator forget one person.

python main.py
python main.py --config=configs/ffhq.py --workdir=runs/mine --config.steps=500
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.experiment.run import MODES, run
from guide_jax.experiment.workers import at_work
from guide_jax.training import distributed

FLAGS = flags.FLAGS


def parse(argv: list[str]) -> list[str]:
    """Reads the command line; a mistake in it ends in one line and exit code 2."""
    try:
        # Here, for it loads the default config and sets its fields at once.
        config_flags.DEFINE_config_file(
            "config",
            str(Path(__file__).parent / "configs" / "demo.py"),
            "What to do; configs/default.py explains every field.",
            lock_config=True,
        )
        flags.DEFINE_string(
            "workdir", None, "Folder for the results; by default runs/NAME of config."
        )
        flags.DEFINE_enum(
            "mode",
            "unlearn",
            MODES,
            "unlearn: what isn't done yet; evaluate: measure stored generators again;"
            " render: make pictures of a stored generator.",
        )
        rest = FLAGS(argv)
        FLAGS.config.lock()  # a file that isn't there is reported on first use only
    except (AttributeError, TypeError) as error:
        # ml_collections wraps a KeyError, whose own text is the readable one.
        text = " ".join(getattr(error.args[0], "args", error.args)[0].split())
        fail(f"no such setting: {text}; configs/default.py has them all", 2)
    except flags.Error as error:
        fail(" ".join(str(error).split()), 2)
    except (OSError, SyntaxError) as error:
        fail(f"--config: {str(error).splitlines()[-1].strip()}", 2)
    if len(rest) > 1:
        fail(f"unknown argument {rest[1]!r}; settings look like --config.steps=50", 2)
    return rest


def main(argv: list[str]) -> None:
    """Runs what the config says; a user's mistake ends in one line and exit code 2."""
    del argv  # `parse` leaves nothing in it
    logging.set_verbosity(logging.WARNING)
    sys.stdout.reconfigure(errors="backslashreplace")  # of files' names
    try:
        distributed.start(FLAGS.config.parallel)
        workdir = Path(FLAGS.workdir or f"runs/{FLAGS.config.name}")
        run(FLAGS.config, workdir, FLAGS.mode)
    except InputError as error:
        fail(error, 2)
    except (UnlearningError, OSError) as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("broken off; the same command goes on from here", 130)


def fail(error: object, code: int) -> NoReturn:
    """Says what was wrong, without a traceback, and ends the program."""
    print("error:", error, file=sys.stderr)
    if distributed.together() or at_work():
        # Other processes would be waited for, and other people's threads torn apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    keep_freed_memory()
    app.run(main, flags_parser=parse)
