"""Two processes of four devices each, started by main.py, share every step."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

import main
from configs import default
from guide_jax.config import read
from guide_jax.errors import InputError
from guide_jax.experiment import modes as experiment
from guide_jax.storage.network_file import load_network, save_network
from guide_jax.training import distributed

STEPS = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Returns the arguments of every run: tiny networks, and LPIPS from the bundle."""
    folder = tmp_path_factory.mktemp("networks")
    made = {
        "generator": tiny.mobile(),
        "identity": tiny.identity(0),
        "judge": tiny.identity(1),
    }
    for role, network in made.items():
        save_network(folder / f"{role}.npz", network)
    return [
        *(f"--config.networks.{role}.path={folder / role}.npz" for role in made),
        "--config.method=guide",
        "--config.attack.directions=",
        f"--config.steps={STEPS}",
        "--config.save_every=2",
        "--config.loss.adjacency.count=8",
        "--config.loss.global_.count=8",
        "--config.evaluate.others=3",
        "--config.evaluate.shown=2",
        f"--config.cache={tmp_path_factory.mktemp('cache')}",
    ]


def start(folder, devices, args):
    """Starts main.py in its own folder, as on a machine with `devices` devices."""
    folder.mkdir(exist_ok=True)
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, Path(main.__file__), "--workdir=work", *args],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(folder, args, more=((), ())):
    """Starts two processes in folders 0 and 1; `more` holds extra arguments of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    args = [
        *args,
        "--config.parallel.devices=0",
        f"--config.parallel.coordinator={address}",
        "--config.parallel.processes=2",
    ]
    each = [[*args, f"--config.parallel.process={i}", *more[i]] for i in range(2)]
    return [start(folder / str(i), 4, each[i]) for i in range(2)]


def lines(workdir):
    """Returns the entries of metrics.jsonl, without their seconds."""
    found = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in found]
    assert all(line.pop("seconds") >= 0 for line in found)
    return found


@pytest.mark.full
def test_two_processes_give_the_same_results_as_one(tmp_path, settings):
    # With two people, process 1 waits for its next task after the first.
    settings = [*settings, "--config.source.count=2"]
    for process in start_two(tmp_path, settings):
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    assert not any((tmp_path / "1").iterdir())
    alone = start(tmp_path / "alone", 1, settings)
    output, _ = alone.communicate(timeout=400)
    assert alone.returncode == 0, output
    for person in ("seed_0", "seed_1"):
        two, one = (tmp_path / x / "work/people" / person for x in ("0", "alone"))
        assert {path.name for path in two.iterdir()} == {
            path.name for path in one.iterdir()
        }
        for line, wanted in zip(lines(two), lines(one), strict=True):
            assert line == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        # Two processes wrote the generator; one reads it.
        leaves, wanted_leaves = (
            tiny.flat(load_network(x / "generator")) for x in (two, one)
        )
        before = tiny.flat(tiny.mobile())
        assert leaves.keys() == wanted_leaves.keys()
        moved = sum(np.linalg.norm(wanted_leaves[x] - before[x]) ** 2 for x in leaves)
        apart = sum(np.linalg.norm(wanted_leaves[x] - leaves[x]) ** 2 for x in leaves)
        assert apart**0.5 < 0.01 * moved**0.5


@pytest.mark.full
def test_one_process_resumes_from_a_checkpoint_of_two(tmp_path, settings):
    long = [*settings, "--config.steps=2000"]
    both = start_two(tmp_path, long)
    state = tmp_path / "0/work/.checkpoint"
    deadline = time.monotonic() + 300
    while not state.exists():
        assert [process.poll() for process in both] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in both:
        process.kill()
        process.communicate()
    log = next((tmp_path / "0/work").glob(".metrics.jsonl.*.part"))
    before = log.read_text().splitlines()
    alone = start(tmp_path / "0", 8, [*long, "--config.parallel.devices=2"])
    while len(log.read_text().splitlines()) <= len(before) + 2:
        assert alone.poll() is None, alone.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    alone.kill()
    output, _ = alone.communicate()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()[:-1]]
    assert steps == list(range(len(steps)))
    # The progress bar starts at the restored step, not at 0.
    assert "| 0/2000" not in output


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_promptly(tmp_path, settings):
    """First process 1 has another learning rate, then process 0 a missing photo."""
    for more, message in (
        (
            [[], ["--config.optimizer.learning_rate=0.5"]],
            "different settings or networks",
        ),
        ([["--config.source.image=nobody.jpg"], []], "nobody.jpg: no such photo"),
    ):
        both = start_two(tmp_path, settings, more)
        started = time.monotonic()
        outputs = [process.communicate(timeout=200)[0] for process in both]
        assert time.monotonic() - started < 120
        assert both[0].returncode == 2, outputs[0]
        assert both[1].returncode != 0
        assert message in outputs[0]
        assert "Traceback" not in outputs[0]


@pytest.mark.parametrize("coordinator", ["myhost", "myhost:x", ":1234"])
def test_a_coordinator_without_host_or_port_is_rejected(coordinator):
    settings = default.get_config().parallel
    settings.coordinator, settings.processes = coordinator, 2
    for settings.process in range(2):
        with pytest.raises(InputError, match="give HOST:PORT of process 0"):
            distributed.start(settings)


def test_an_unreachable_coordinator_is_named_in_the_error(monkeypatch):
    monkeypatch.setattr(distributed, "CONNECT_TIMEOUT", 0.3)
    settings = default.get_config().parallel
    settings.coordinator, settings.processes = "127.0.0.1:1", 2
    settings.process = 1
    with pytest.raises(InputError, match=r"'127\.0\.0\.1:1': no answer"):
        distributed.start(settings)


def by_people(**changes):
    settings = read(default.get_config()).parallel
    return dataclasses.replace(settings, over="people", **changes)


def test_processes_that_share_people_are_not_connected(monkeypatch):
    def connect(**kwargs):
        raise AssertionError("connected")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", connect)
    for coordinator in ("", "127.0.0.1:1"):
        settings = by_people(coordinator=coordinator, processes=3, process=2)
        assert distributed.start(settings) == settings


@pytest.mark.parametrize(
    ("variables", "numbers"),
    [
        ({"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "6"}, (4, 6)),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b,c"}, (1, 3)),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b,c",
          "MEGASCALE_SLICE_ID": "1", "MEGASCALE_NUM_SLICES": "2"}, (4, 6)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6"}, None),  # without srun
    ],
)  # fmt: skip
def test_a_cluster_numbers_the_processes(monkeypatch, variables, numbers):
    for name in (*distributed.SLURM, *distributed.GKE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if numbers:
        found = distributed.start(by_people(coordinator="auto"))
        assert (found.process, found.processes) == numbers
        return
    with pytest.raises(InputError, match="neither SLURM's srun nor GKE has given"):
        distributed.start(by_people(coordinator="auto"))


def test_what_several_processes_do_not_support_is_rejected(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment.jax, "process_count", lambda: 2)
    config = default.get_config()
    for mode in ("evaluate", "render"):
        with pytest.raises(InputError, match="only --mode=unlearn can use them"):
            experiment.run(config, tmp_path, mode)
    config.parallel.over = "people"
    with pytest.raises(InputError, match="JAX has connected 2 processes, but those"):
        experiment.run(config, tmp_path)
    monkeypatch.undo()
    config.parallel.processes = 2
    with pytest.raises(InputError, match="--mode=render works in a single process"):
        experiment.run(config, tmp_path, "render")


def test_a_single_process_is_main_and_broadcasts_nothing():
    tree = {"a": np.ones(2)}
    assert distributed.broadcast(tree) is tree
    assert distributed.is_main()
