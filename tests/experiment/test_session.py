"""People one by one: what a person's run does, skips, resumes and refuses."""

import csv
import io
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from configs import default
from guide_jax.errors import InputError, UnlearningError
from guide_jax.experiment import from_config, session
from guide_jax.experiment import run as experiment
from guide_jax.experiment.session import Session
from guide_jax.faces import photos
from guide_jax.latents import Coder
from guide_jax.metrics import identity
from guide_jax.people import Person
from guide_jax.storage import run_folder
from guide_jax.storage.run_folder import PersonFolder, StepLog
from guide_jax.training.accumulate import step_bytes
from guide_jax.training.losses import Compute, LossWeights, PairWeights
from guide_jax.training.sharding import Team
from guide_jax.training.step import Draws

SEED = Person("seed_5", "seed 5", seed=5)


def settings(**changes):
    config = default.get_config()
    config.steps, config.save_every = 6, 2
    config.parallel.devices = 1
    config.evaluate.others, config.evaluate.shown = 4, 2
    config.optimizer.learning_rate = 0.01
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def networks():
    networks = tiny.judges()
    return {
        "generator": tiny.generator(8),
        "encoder": tiny.encoder(num_ws=4),
        "lpips": networks.lpips,
        "identity": networks.identity,
        "judge": tiny.identity(1),
    }


@pytest.fixture(scope="module", autouse=True)
def _hashes():
    """The tiny LPIPS is of no known kind, so its hash is made up."""
    whole = session.network_hash

    def made(network):
        return whole(network) if hasattr(network, "config") else "lpips"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "network_hash", made)
        yield


@pytest.fixture(scope="module")
def first(networks, tmp_path_factory):
    """Returns a session and the folder and results of its first person."""
    work, folder = Session(settings(), networks), tmp_path_factory.mktemp("first")
    return work, folder, work.person(SEED, PersonFolder(folder))


class Killed(BaseException):
    """As a signal: nobody catches it."""


def numbers(results):
    return {name: value for name, value in results.items() if name != "seconds"}


def spy(monkeypatch, work):
    """Returns the list of a session's trainings from now on."""
    made = []
    train = work._unlearn

    def noted(*args, **kwargs):
        made.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(work, "_unlearn", noted)
    return made


def copy_of(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


# What one person's run does ----------------------------------------------------------


def test_every_training_field_reaches_the_training(networks, monkeypatch, tmp_path):
    config = settings(
        **{
            "seed": 11,
            "steps": 12,
            "save_every": 13,
            "frugal": "always",
            "compute": "bfloat16",
            "precision": "high",
            "optimizer.learning_rate": 0.013,
            "loss.psi": 0.14,
            "loss.lpips_resolution": 4,
            "loss.local.weight": 1.5,
            "loss.local.mse_weight": 1.6,
            "loss.local.lpips_weight": 1.7,
            "loss.local.id_weight": 1.8,
            "loss.adjacency.weight": 2.5,
            "loss.adjacency.mse_weight": 2.6,
            "loss.adjacency.lpips_weight": 2.7,
            "loss.adjacency.id_weight": 2.8,
            "loss.adjacency.count": 3,
            "loss.adjacency.alpha_max": 3.5,
            "loss.global_.weight": 4.5,
            "loss.global_.count": 5,
        }
    )
    made, called = {}, {}

    class Recorder:
        def __init__(self, generator, judges, **kwargs):
            made.update(kwargs, networks=(generator, *judges))

        def __call__(self, w_u, w_target, **kwargs):
            called.update(kwargs)
            raise UnlearningError("enough")

    monkeypatch.setattr(from_config, "Unlearner", Recorder)
    team = Team()
    work = Session(config, networks, team=team, line=4)
    with pytest.raises(UnlearningError, match="enough"):
        work.person(SEED, PersonFolder(tmp_path))
    assert made == {
        "networks": tuple(networks[x] for x in ("generator", "lpips", "identity")),
        "learning_rate": 0.013,
        "weights": LossWeights(
            PairWeights(mse=1.6, lpips=1.7, identity=1.8, total=1.5),
            PairWeights(mse=2.6, lpips=2.7, identity=2.8, total=2.5),
            4.5,
        ),
        "draws": Draws(3, 5, alpha_max=3.5, psi=0.14),
        "frugal": True,
        "compute": Compute("bfloat16", "high", 4),
        "team": team,
        "line": 4,
    }
    assert (called["key"], called["steps"]) == (jax.random.key(11), 12)
    assert called["keeper"].every == 13


def test_a_sampled_person_is_the_seed_s_z_through_the_mapping(first, networks):
    _, folder, _ = first
    z = photos.z_of_seed(5, 8)
    w = tiny.jitted(networks["generator"].mapping, lambda m, z: m(z), z)
    with np.load(folder / "codes.npz") as codes:
        np.testing.assert_allclose(codes["w_u"], w, rtol=1e-5, atol=1e-5)
        assert codes["tests"].shape == (0, 4, 7)


def test_results_metrics_and_pictures_are_there(first):
    _, folder, results = first
    assert json.loads((folder / "results.json").read_text()) == results
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[0]["seconds"] > 0  # of the compilation
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    assert names == ["1_before.png", "2_after.png", "3_target.png"]
    assert not (folder / ".checkpoint").exists()
    assert not list(folder.glob("*.part"))
    with np.load(folder / "embeddings.npz") as faces:
        cosine = float(faces["before"] @ faces["after"])
    assert results["id"] == pytest.approx(cosine, abs=1e-6)


def test_a_photo_is_compared_with_its_reconstruction_and_other_photos_are_tested(
    networks, tmp_path
):
    photos = [save_noise(tmp_path / f"{i}.png", i) for i in range(3)]
    work = Session(settings(), networks)
    person = Person("a", "a", photo=photos[0], tests=tuple(photos[1:]))
    results = work.person(person, PersonFolder(tmp_path / "work"))
    assert results["inversion"].keys() == {"id", "lpips"}
    assert -1 <= results["id_others"] < 1
    with np.load(tmp_path / "work" / "codes.npz") as codes:
        assert codes["tests"].shape == (2, 4, 7)
        assert np.any(codes["tests"][0] != codes["tests"][1])
    # Another test photo is another run.
    made = []
    work._unlearn = lambda *args, **kwargs: made.append(args) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        work.person(person._replace(tests=()), PersonFolder(tmp_path / "work"))
    assert made


def save_noise(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_test_photos_that_cannot_be_used_are_noted_and_left_out(networks, tmp_path):
    photo, test = (save_noise(tmp_path / f"{i}.png", i) for i in range(2))
    bad = tmp_path / "bad.png"
    bad.write_text("no photo")
    person = Person("a", "a", photo=photo, tests=(bad, test))
    results = Session(settings(), networks).person(person, PersonFolder(tmp_path / "w"))
    assert results["notes"][0].startswith(f"left out: {bad}: not an image that can be")
    assert "id_others" in results
    with np.load(tmp_path / "w" / "codes.npz") as codes:
        assert codes["tests"].shape == (1, 4, 7)


def test_fid_and_an_aligning_judge_are_used_where_the_config_says_so(
    networks, tmp_path, monkeypatch
):
    monkeypatch.setattr(identity, "detect", lambda mtcnn, image: [])
    more = {"inception": tiny.inception(), "detector": "mtcnn"}
    hashes = session.network_hash
    monkeypatch.setattr(
        session, "network_hash", lambda x: x if isinstance(x, str) else hashes(x)
    )
    changes = {"evaluate.fid_samples": 5, "evaluate.align": "mtcnn"}
    config = settings(cache=str(tmp_path / "cache"), **changes)
    work = Session(config, networks | more)
    results = work.person(SEED, PersonFolder(tmp_path / "work"))
    assert results["fid_samples"] == 5
    assert results["fid_pre"] >= 0
    assert "delta_fid_real" not in results
    assert (results["id"], results["id_kept"]) == (None, None)
    assert results["no_face"] == 2 + 2 * 4
    text = (tmp_path / "work" / "results.json").read_text()
    assert json.loads(text)["id"] is None


# What is not done again --------------------------------------------------------------


def test_a_finished_person_is_not_done_again(first, monkeypatch, capsys):
    work, folder, results = first
    made = spy(monkeypatch, work)
    monkeypatch.setattr(work, "_measure", None)
    assert work.person(SEED, PersonFolder(folder)) == results
    assert made == []
    assert (
        f"seed 5 is done already, with these settings: {folder}"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("change", [{"evaluate.others": 3}, {"evaluate.seed": 9}])
def test_other_measures_need_no_other_training(
    first, networks, tmp_path, monkeypatch, change
):
    _, folder, results = first
    folder = copy_of(folder, tmp_path)
    work = Session(settings(**change), networks)
    made = spy(monkeypatch, work)
    again = work.person(SEED, PersonFolder(folder))
    assert made == []
    assert again["id"] == pytest.approx(results["id"], abs=1e-6)
    assert again["lpips_kept"] != results["lpips_kept"]


@pytest.mark.parametrize("change", [{"steps": 7}, {"seed": 3}, {"source.psi": 0.5}])
def test_other_settings_are_another_training(first, networks, tmp_path, change):
    _, folder, results = first
    folder = copy_of(folder, tmp_path)
    again = Session(settings(**change), networks).person(SEED, PersonFolder(folder))
    assert again["lpips_person"] != results["lpips_person"]
    assert again["ids"]["training"] != results["ids"]["training"]


def test_other_weights_are_another_training(first, networks, tmp_path, monkeypatch):
    _, folder, _ = first
    folder = copy_of(folder, tmp_path)
    work = Session(settings(), networks | {"identity": tiny.identity(7)})
    made = spy(monkeypatch, work)
    work.person(SEED, PersonFolder(folder))
    assert len(made) == 1


def test_evaluate_measures_again_and_trains_never(first, tmp_path, monkeypatch):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    (folder / "results.json").unlink()
    made = spy(monkeypatch, work)
    assert numbers(work.person(SEED, PersonFolder(folder), "evaluate")) == numbers(
        results
    )
    assert made == []
    shutil.rmtree(folder / "generator")
    with pytest.raises(InputError, match="no whole result is stored there"):
        work.person(SEED, PersonFolder(folder), "evaluate")


def test_evaluate_measures_nobody_else_and_no_other_generator_s(first, networks):
    work, folder, _ = first
    other = Person("seed_6", "seed 6", seed=6)
    with pytest.raises(InputError, match="holds how seed 5 was forgotten; that is not"):
        work.person(other, PersonFolder(folder), "evaluate")
    changed = Session(settings(), networks | {"generator": tiny.generator(8, seed=9)})
    with pytest.raises(InputError, match="holds how seed 5 was forgotten; that is not"):
        changed.person(SEED, PersonFolder(folder), "evaluate")
    assert (folder / "results.json").exists()


def test_measuring_again_keeps_the_training_s_settings(first, networks, tmp_path):
    _, folder, _ = first
    folder = copy_of(folder, tmp_path)
    work = Session(settings(steps=99, **{"evaluate.others": 3}), networks)
    results = work.person(SEED, PersonFolder(folder), "evaluate")
    assert results["config"]["steps"] == 6
    assert results["config"]["evaluate"]["others"] == 3


def test_codes_of_another_training_are_not_measured(first, tmp_path, monkeypatch):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    other = Person("seed_6", "seed 6", seed=6)

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_network", kill)
        with pytest.raises(Killed):  # between its codes and its generator
            work.person(other, PersonFolder(folder))
    with pytest.raises(InputError, match="of another training than generator"):
        work.person(SEED, PersonFolder(folder), "evaluate")
    made = spy(monkeypatch, work)
    assert numbers(work.person(SEED, PersonFolder(folder))) == numbers(results)
    assert len(made) == 1


def test_results_are_taken_back_before_what_they_go_with_changes(
    first, tmp_path, monkeypatch
):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)

    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(session.report, "before_after", kill)
        with pytest.raises(Killed):
            work.person(SEED, PersonFolder(folder), "evaluate")
    assert not (folder / "results.json").exists()
    assert numbers(work.person(SEED, PersonFolder(folder))) == numbers(results)


def test_a_damaged_generator_is_made_again(first, tmp_path, monkeypatch):
    work, folder, results = first
    folder = copy_of(folder, tmp_path)
    (folder / "results.json").unlink()
    for file in (folder / "generator" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    made = spy(monkeypatch, work)
    assert numbers(work.person(SEED, PersonFolder(folder))) == numbers(results)
    assert len(made) == 1


# What was broken off -----------------------------------------------------------------


@pytest.mark.parametrize("where", ["step", "save_network", "measure", "results"])
def test_a_run_broken_off_anywhere_goes_on_to_the_same_results(
    first, networks, tmp_path, monkeypatch, where
):
    _, whole, results = first
    work = Session(settings(), networks)

    def kill(*args, **kwargs):
        raise Killed

    if where == "step":
        call = StepLog.__call__

        def until(self, step, terms):
            return kill() if step == 5 else call(self, step, terms)

        monkeypatch.setattr(StepLog, "__call__", until)
    elif where == "save_network":
        monkeypatch.setattr(run_folder, "save_network", kill)
    elif where == "measure":
        monkeypatch.setattr(PersonFolder, "settle", kill)
    else:
        monkeypatch.setattr(run_folder.report, "write_json", kill)
    with pytest.raises(Killed):
        work.person(SEED, PersonFolder(tmp_path))
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    made = spy(monkeypatch, work)
    steps = []
    call = StepLog.__call__
    monkeypatch.setattr(
        StepLog, "__call__", lambda s, i, t: steps.append(i) or call(s, i, t)
    )
    again = work.person(SEED, PersonFolder(tmp_path))
    assert numbers(again) == numbers(results)
    assert steps == {"step": [4, 5], "save_network": [4, 5]}.get(where, [])
    assert len(made) == (1 if steps else 0)
    for name in ("metrics.jsonl", "embeddings.npz", "codes.npz"):
        if name != "metrics.jsonl":
            assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
        else:
            mine, theirs = (
                [json.loads(line) for line in (f / name).read_text().splitlines()]
                for f in (tmp_path, whole)
            )
            assert [numbers(x) for x in mine] == [numbers(x) for x in theirs]
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_broken_off_run_of_other_settings_is_not_gone_on_from(
    networks, tmp_path, monkeypatch
):
    work = Session(settings(), networks)

    def until(self, step, terms):
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "__call__", until)
        with pytest.raises(Killed):
            work.person(SEED, PersonFolder(tmp_path))
    assert (tmp_path / ".checkpoint").exists()
    steps = []
    call = StepLog.__call__
    monkeypatch.setattr(
        StepLog, "__call__", lambda s, i, t: steps.append(i) or call(s, i, t)
    )
    Session(settings(seed=1), networks).person(SEED, PersonFolder(tmp_path))
    assert steps == list(range(6))


# Many --------------------------------------------------------------------------------


@pytest.fixture
def many(networks, monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "load_networks", lambda config: networks)

    def run(mode="unlearn", **changes):
        return experiment.run(settings(**changes), tmp_path / "work", mode)

    return run


def test_people_get_a_folder_each_and_a_table_of_all(many, tmp_path, capsys):
    summary = many(**{"source.seeds": (2, 5, 2), "parallel.devices": 0})
    assert "2 of 8 devices share each step" in capsys.readouterr().out
    work = tmp_path / "work"
    assert [row["title"] for row in summary["people"]] == ["seed 2", "seed 5"]
    assert sorted(p.name for p in (work / "people").iterdir()) == ["seed_2", "seed_5"]
    assert json.loads((work / "results.json").read_text()) == summary
    header, *rows = (work / "results.csv").read_text().splitlines()
    assert header.startswith("person,title,id,id_strangers,")
    assert [row.split(",")[0] for row in rows] == ["seed_2", "seed_5"]
    assert "2 people forgotten" in (work / "report.html").read_text()


@pytest.mark.slow
def test_people_side_by_side_come_out_as_one_after_another(
    many, networks, tmp_path, monkeypatch
):
    codes, where = Coder.__call__, []

    def noted(self, person):
        made = codes(self, person)
        where.append(made.w_u if person.photo else jax.numpy.zeros(1).device)
        if person.seed == 1:
            raise InputError("nobody")
        return made

    monkeypatch.setattr(Coder, "__call__", noted)
    changes = {"source.count": 5, "steps": 3, "evaluate.others": 3}
    tables = []
    for over, devices in (("latents", 1), ("people", 3)):
        parallel = {"parallel.over": over, "parallel.devices": devices}
        with pytest.raises(UnlearningError, match=r"1 of 5 people failed.*nobody"):
            many(**changes, **parallel)
        tables.append((tmp_path / "work/results.csv").read_bytes())
        shutil.rmtree(tmp_path / "work")
    assert tables[0] == tables[1]
    assert tables[0].count(b"\n") == 6
    assert set(where[5:]) == set(jax.devices()[:3])
    assert set(where[:5]) == {jax.devices()[0]}


def test_one_person_s_failure_leaves_the_others_done(many, tmp_path, monkeypatch):
    codes = Coder.__call__

    def fail(self, person):
        if person.seed == 1:
            raise InputError("a bad photo,\nof two lines")
        return codes(self, person)

    monkeypatch.setattr(Coder, "__call__", fail)
    with pytest.raises(UnlearningError) as caught:
        many(**{"source.count": 3})
    assert "1 of 3 people failed, the others are done: seed 1 (a bad photo, of" in str(
        caught.value
    )
    *_, last = (tmp_path / "work" / "results.csv").read_text().splitlines()
    assert last.startswith(",seed 1,")
    assert last.endswith('"a bad photo, of two lines"')
    summary = json.loads((tmp_path / "work" / "results.json").read_text())
    assert [row["title"] for row in summary["people"]] == ["seed 0", "seed 2"]
    assert "a bad photo, of two lines" in (tmp_path / "work/report.html").read_text()


def test_bad_photos_of_a_folder_are_listed_and_the_good_ones_done(many, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        save_noise(photos / f"{i}.png", i)
    (photos / "0.png").write_text("no photo")
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnlearningError, match="2 of 5 people failed, the others are"):
        many(**{"source.image": str(photos)})
    text = (tmp_path / "work" / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["title"] for row in rows] == [
        "1.png", "2.png", "4.png", "0.png", "3.png"
    ]  # fmt: skip
    assert [bool(row["fault"]) for row in rows] == [False] * 3 + [True] * 2
    assert "not an image that can be read" in rows[3]["fault"]


def test_any_fault_of_a_person_leaves_the_others_done(many, monkeypatch):
    measure = Session._measure

    def fail(self, person, *args):
        if person.seed == 0:
            raise RuntimeError("out of\nmemory")
        return measure(self, person, *args)

    monkeypatch.setattr(Session, "_measure", fail)
    with pytest.raises(UnlearningError, match=r"seed 0 .RuntimeError: out of memory"):
        many(**{"source.count": 2})


def test_results_within_the_photos_folder_are_refused(many, tmp_path):
    save_noise(tmp_path / "face.png", 0)
    with pytest.raises(InputError, match="within the photos' folder"):
        many(**{"source.image": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == ["face.png"]


def test_an_unknown_mode_is_refused(many):
    with pytest.raises(InputError, match="--mode=x: known are unlearn, evaluate"):
        many("x")


# Memory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "memory", "frugal"),
    [
        ("auto", 1e9, False),
        ("auto", 1e6, True),
        ("always", 1e9, True),
        ("never", 1e6, False),
    ],
)
def test_pairs_are_taken_one_by_one_where_all_might_not_fit(
    networks, monkeypatch, capsys, choice, memory, frugal
):
    made = {}
    monkeypatch.setattr(
        from_config, "Unlearner", lambda *_, **kwargs: made.update(kwargs)
    )
    monkeypatch.setattr(Team, "memory", lambda self: int(memory))
    Session(settings(frugal=choice), networks)
    assert made["frugal"] is frugal
    said = "one pair of pictures at a time" in capsys.readouterr().out
    assert said == (choice == "auto" and frugal)


def test_a_step_of_the_paper_s_takes_what_was_measured():
    assert step_bytes(1024) * 5 == pytest.approx(19.7 * 2**30, rel=0.03)
    assert 1e9 < Team().memory() < 1e14
