"""Hashes that tell whether a person, a training or measures are still the same."""

import dataclasses

import pytest

from configs import default
from guide_jax.config import read
from guide_jax.errors import InputError
from guide_jax.people import Person, sampled
from guide_jax.storage import fingerprint

HASHES = {role: f"hash of {role}" for role in default.ROLES}


@pytest.fixture
def photos(tmp_path):
    paths = tuple(tmp_path / f"{i}.png" for i in range(3))
    for i, path in enumerate(paths):
        path.write_text(f"photo {i}")
    return paths


def of_person(person, hashes=HASHES, **changes):
    config = default.get_config()
    config.source.update_from_flattened_dict(changes)
    return fingerprint.of_person(person, read(config).source, hashes)


def test_sampled_people_have_the_hashes_of_version_0_1_0():
    wanted = fingerprint.of({"seed": 5, "psi": 0.5})
    assert of_person(sampled(5), psi=0.5) == wanted
    assert of_person(sampled(5), hashes={}, psi=0.5) == wanted


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"align": "ffhq"}, True),
        ({"variants": 2}, True),
        ({"codes_per_step": 0}, True),
        ({"refine.steps": 7}, True),
        ({"refine.learning_rate": 0.25}, True),
        ({"refine.id_weight": 0.25}, True),
        ({"refine.prior_weight": 0.25}, True),
        ({"refine.layers_weight": 0.25}, True),
        ({"accept_doubt": True}, False),
        # These say which photos are used, and only the photos count.
        ({"held_out": 2}, False),
        ({"photos_per_person": 2}, False),
    ],
)
def test_settings_of_photos_matter_only_to_photos(photos, change, matters):
    person = Person("a", "a", photos=photos)
    assert (of_person(person, **change) != of_person(person)) == matters
    assert of_person(sampled(5), **change) == of_person(sampled(5))


@pytest.mark.parametrize("role", default.ROLES)
def test_the_networks_that_find_codes_matter_to_photos(photos, role):
    person = Person("a", "a", photos=photos)
    changed = HASHES | {role: "another"}
    for align in ("none", "ffhq"):
        roles = {"encoder", "identity", "lpips"}
        roles |= {"detector"} if align == "ffhq" else set()
        same = of_person(person, align=align) == of_person(person, changed, align=align)
        assert same == (role not in roles)
    assert of_person(sampled(5), changed) == of_person(sampled(5))


def test_the_photos_their_order_and_their_use_matter(photos):
    a, b, c = photos
    people = [
        Person("a", "a", photos=(a, b), tests=(c,)),
        Person("a", "a", photos=(b, a), tests=(c,)),
        Person("a", "a", photos=(a, b)),
        Person("a", "a", photos=(a, b, c)),
        Person("a", "a", photos=(a,), tests=(b, c)),
    ]
    assert len({of_person(person) for person in people}) == len(people)
    before = of_person(people[0])
    # A file's name does not matter, its contents do.
    moved = c.rename(c.with_name("moved.png"))
    assert of_person(people[0]._replace(tests=(moved,))) == before
    moved.write_text("another photo")
    assert of_person(people[0]._replace(tests=(moved,))) != before


def test_one_of_several_photos_may_be_unreadable(photos, tmp_path):
    a, b, _ = photos
    none = tmp_path / "none.png"
    hashes = {
        of_person(Person("a", "a", photos=(a, b))),
        of_person(Person("a", "a", photos=(a, none))),
        of_person(Person("a", "a", photos=(a,), tests=(none,))),
    }
    assert len(hashes) == 3
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        of_person(Person("a", "a", photos=(none,)))


def test_measures_depend_on_the_schema(monkeypatch):
    config = read(default.get_config())
    assert fingerprint.SCHEMA == 4
    before = fingerprint.of_measures(config, HASHES, [], None)
    monkeypatch.setattr(fingerprint, "SCHEMA", 3)
    assert fingerprint.of_measures(config, HASHES, [], None) != before


def test_a_training_does_not_depend_on_the_judges():
    config = read(default.get_config())
    changed = HASHES | {"judge": "another"}
    assert fingerprint.of_training(config, "", changed) == fingerprint.of_training(
        config, "", HASHES
    )
    fields = config.fields | {"evaluate": {"external": ["dlib"]}}
    other = dataclasses.replace(config, fields=fields)
    assert fingerprint.of_training(other, "", HASHES) == fingerprint.of_training(
        config, "", HASHES
    )


def of_training(**changes):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    return fingerprint.of_training(read(config), "", HASHES)


@pytest.mark.parametrize(
    ("change", "guide", "erase"),
    [
        ({"loss.local.weight": 2.0}, True, False),
        ({"target.distance": 20.0}, True, False),
        ({"loss.psi": 0.5}, True, False),
        ({"source.psi": 0.5}, False, True),
        ({"erase.limit": 3.0}, False, True),
    ],
)
def test_each_method_depends_on_its_own_settings(change, guide, erase):
    assert (of_training(**change) != of_training()) == guide
    own = {"method": "erase", "steps": 0}
    assert (of_training(**own, **change) != of_training(**own)) == erase
    assert of_training(**own) != of_training()
