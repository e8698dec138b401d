"""All attacks on generators where the answer is known."""

import numpy as np
import pytest
import tiny
import toy
from jobs import settings

from guide_jax.attacks.battery import Attacker
from guide_jax.attacks.verdict import LEVEL_OF
from guide_jax.config import read
from guide_jax.console import Console
from guide_jax.faces.photos import to_uint8
from guide_jax.latents import Codes, LatentFinder

CHANGES = {
    "attack.directions": "directions.npz",
    "attack.edit_sizes": (0.2,),
    "attack.starts": 2,
    "attack.photos": 2,
    "attack.budgets": (5, 40),
    "attack.learning_rate": 0.1,
    "attack.random_people": 150,
    "attack.relearn_steps": (2,),
    "attack.strangers": "strangers",
    "attack.strangers_count": 4,
}
WHICH = tuple(LEVEL_OF)
# The loss's identity encoder is random here, so it may find anybody.
SURE = tuple(name for name in WHICH if name != "search_identity")


def save_strangers(folder, count):
    """Saves photos of people who are mostly the pattern that codes lack."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(3)
    for i in range(count):
        weights = np.append(0.6 * rng.standard_normal(toy.DIM), 4)
        pixels = to_uint8(toy.image(weights))[0]
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """Returns a function: (unlearned, changes, tests) -> what the attacks reached."""
    monkeypatch.chdir(tmp_path)
    save_strangers(tmp_path / "strangers", 4)
    np.savez("directions.npz", smile=np.eye(toy.DIM, dtype=np.float32)[1])

    def run(unlearned, photos=(), tests=(), which=WHICH, **changes):
        config = read(settings(**CHANGES | changes))
        networks = toy.networks()
        console = Console()
        attacker = Attacker(
            config,
            networks,
            LatentFinder(config, networks, console),
            {"judge": toy.judge},
            {},
            console,
        )
        w = np.zeros((1, toy.NUM_WS, toy.DIM), np.float32)
        w[..., toy.PERSON], w[..., 3] = 4, 0.6
        empty = np.zeros((0, toy.SIDE, toy.SIDE, 3), np.float32)
        shown = [np.concatenate([empty, *x]) for x in (photos, tests)]
        codes = Codes(w, -w, np.repeat(w, len(tests), axis=0))
        return attacker(unlearned, codes, *shown, which)

    return run


def levels(found):
    return [level["holds"] for level in found["verdict"]["levels"].values()]


def test_nothing_holds_for_a_generator_that_never_forgot(attack):
    found = attack(toy.Generator())
    assert levels(found) == [False] * 5
    assert found["verdict"]["level"] == 0
    for outcome in found["outcomes"]:
        similarities = outcome["similarities"]
        assert similarities["unlearned"] == similarities["original"]


def test_all_holds_for_a_generator_whose_range_excludes_the_person(attack):
    found = attack(toy.Generator(excluded=1.0))
    assert levels(found)[:4] == [True] * 4, found["verdict"]["levels"]
    assert found["verdict"]["level"] >= 4
    assert found["left_out"] == ["other_codes: there are no other photos of the person"]
    assert found["strangers"] == "photos in strangers"


def test_the_person_is_found_in_the_original_by_every_attack(attack):
    found = attack(toy.Generator(excluded=1.0))
    best = {}
    for outcome in found["outcomes"]:
        values = outcome["similarities"]["original"]["judge"]
        name = outcome["attack"]
        best[name] = max(best.get(name, -1), *values)
    assert best.pop("random") > 0.5  # nobody among 150 people is exactly the person
    best.pop("search_identity")  # the encoder is random, so it may like anybody
    assert min(best.values()) > 0.8, best


def test_photos_of_a_person_are_compared_with_photos(attack):
    w = np.zeros(toy.DIM + 1)
    w[toy.PERSON], w[3] = 4, 0.6
    other = w.copy()
    other[4] = 0.8
    found = attack(
        toy.Generator(excluded=1.0), [toy.image(w)], [toy.image(other)], SURE
    )
    compared = {(x["attack"], x["compared"]) for x in found["outcomes"]}
    assert {("replay", "photos"), ("replay", "generated")} <= compared
    assert ("other_codes", "photos") in compared
    assert levels(found)[:4] == [True] * 4, found["verdict"]["levels"]
    # One test photo, so one value; strangers are one value each.
    (search,) = (
        x for x in found["outcomes"] if x["attack"] == "search_w" and x["budget"] == 40
    )
    counts = {g: len(x["judge"]) for g, x in search["similarities"].items()}
    assert counts == {"original": 1, "unlearned": 1, "strangers": 4}


def test_levels_that_need_strangers_are_not_tested_without_any(attack):
    found = attack(
        toy.Generator(excluded=1.0),
        which=("replay", "line", "neighbourhood", "encoder", "search_w"),
        **{"attack.strangers": ""},
    )
    assert levels(found) == [True, True, True, None, None]
    assert found["verdict"]["level"] == 3
    assert found["strangers"] is None


def test_photos_are_not_compared_with_generated_strangers(attack, tmp_path):
    tiny.save(tmp_path, generator=tiny.mobile())
    strangers = {"attack.strangers": f"generator:{tmp_path / 'generator.npz'}"}
    which = "replay", "line", "neighbourhood", "encoder", "search_w"
    sampled = attack(toy.Generator(excluded=1.0), which=which, **strangers)
    assert levels(sampled)[3] is not None
    photo = toy.image(np.eye(toy.DIM + 1)[toy.PERSON] * 4)
    found = attack(toy.Generator(excluded=1.0), [photo], which=which, **strangers)
    assert levels(found)[3] is None
    for outcome in found["outcomes"]:
        if outcome["compared"] == "photos" and outcome["level"] > 2:
            assert "strangers" not in outcome["similarities"]


def test_directions_are_optional(attack):
    found = attack(
        toy.Generator(), which=("replay", "edits"), **{"attack.directions": ""}
    )
    assert found["left_out"] == ["edits: config.attack.directions names no directions"]
    assert {x["attack"] for x in found["outcomes"]} == {"replay"}
