"""How the demo bundle's weights were made; each file is a command that can be rerun.

Order: perceptual, faces, teachers, generator, samples, identity (twice), encoder; the
bundle's README has the command lines. `student` is not part of it: the demo does not
use its result. What they work with is kept in `distill_work/`, below the current
folder.
"""

from pathlib import Path

BUNDLE = Path(__file__).parent.parent / "guide_jax" / "demo_weights"
WORK = Path("distill_work")
