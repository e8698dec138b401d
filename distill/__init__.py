"""How the demo bundle's weights were made; each file is a command that can be rerun.

Order: faces, teachers, generator, identity, inverter (and student, which the demo does
not use; its README says why). All read and write below `--work`, by default
`distill_work/`.
"""

from pathlib import Path

BUNDLE = Path(__file__).parent.parent / "guide_jax" / "demo_weights"
WORK = Path("distill_work")
