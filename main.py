"""Makes a face generator forget one person.

python main.py
python main.py --config=configs/ffhq.py --workdir=runs/mine --config.steps=500
"""

import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from guide_jax.config import read
from guide_jax.config_checks import check_parallel, unknown_field
from guide_jax.config_types import Parallel
from guide_jax.errors import (
    DoubtError,
    InputError,
    UnlearningError,
    VerdictError,
    in_one_line,
    is_out_of_memory,
)
from guide_jax.experiment.allocator import keep_freed_memory
from guide_jax.experiment.modes import MODES, run
from guide_jax.experiment.workers import is_working
from guide_jax.training import distributed

FLAGS = flags.FLAGS


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; on a mistake, prints one line and exits with code 2."""
    try:
        # Defined here rather than at import, so that errors in the config are caught.
        config_flags.DEFINE_config_file(
            "config",
            str(Path(__file__).parent / "configs" / "demo.py"),
            "Config file; configs/default.py explains every field.",
            lock_config=True,
        )
        flags.DEFINE_string(
            "workdir", None, "Folder for the results; default: runs/NAME of the config."
        )
        modes = "; ".join(f"{name}: {mode.help}" for name, mode in MODES.items())
        flags.DEFINE_enum("mode", "unlearn", list(MODES), f"{modes}.")
        rest = FLAGS([_at_home(argument) for argument in argv])
        FLAGS.config.lock()  # a missing file is reported on first use only
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections wraps a KeyError; the inner error has the readable message.
        fail(unknown_field(getattr(error.args[0], "args", error.args)[0]), 2)
    except flags.Error as error:
        fail(" ".join(str(error).split()), 2)
    except (OSError, SyntaxError) as error:
        fail(f"--config: {str(error).splitlines()[-1].strip()}", 2)
    if len(rest) > 1:
        fail(f"unknown argument {rest[1]!r}; settings look like --config.steps=50", 2)
    return rest


def _at_home(argument: str) -> str:
    """Expands the ~ in --config=~/mine.py, which shells leave as it is."""
    name, equals, value = argument.partition("=")
    is_path = name.lstrip("-") == "config"
    return name + equals + os.path.expanduser(value) if is_path else argument


def main(argv: list[str]) -> None:
    """Runs the config; on a user's mistake, prints one line and exits with code 2."""
    del argv  # `parse` has handled all arguments
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", module="PIL")  # errors say what cannot be read
    sys.stdout.reconfigure(errors="backslashreplace")  # for unprintable file names
    try:
        # First, so that a wrong setting in one process ends all of them.
        check_parallel(FLAGS.config.parallel)
        parallel = distributed.start(Parallel(**FLAGS.config.parallel))
        config = replace(read(FLAGS.config), parallel=parallel)
        run(config, Path(FLAGS.workdir or f"runs/{config.name}"), FLAGS.mode)
    except (DoubtError, VerdictError) as error:
        fail(error, 3)
    except InputError as error:
        fail(error, 2)
    except UnlearningError as error:
        fail(error, 1)
    except OSError as error:
        fail(f"{in_one_line(error)}; the same command resumes from what is stored", 1)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(
            f"out of memory ({in_one_line(error)}); end other programs, or lower"
            " config.evaluate.batch, config.attack.batch or config.loss.*.count",
            1,
        )
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to resume", 130)


def fail(error: object, code: int) -> NoReturn:
    """Prints an error without a traceback and ends the program."""
    print("error:", error, file=sys.stderr)
    if distributed.is_distributed() or is_working():
        # A normal exit would wait for other processes, and crash other threads.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    keep_freed_memory()
    app.run(main, flags_parser=parse)
