"""Who is forgotten: the people that a config's source lists."""

import numpy as np
import pytest
from PIL import Image

from configs import default
from guide_jax import people
from guide_jax.config import read
from guide_jax.errors import InputError


def source(**changes):
    config = default.get_config()
    config.source.update(changes)
    return read(config).source


@pytest.fixture
def photos(tmp_path):
    """Returns a folder of two photos, two people's folders, a text and an empty one."""
    for name in ("b.png", "a.jpg", "ann/2.png", "ann/1.png", "ann/3.png", "bo/x.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_sampled_people_have_consecutive_or_given_seeds():
    (one,) = people.list_people(source(seed=7))
    assert one == people.Person("seed_7", "seed 7", seed=7)
    consecutive = people.list_people(source(seed=7, count=3))
    assert [person.seed for person in consecutive] == [7, 8, 9]
    given = people.list_people(source(seeds=(5, 1, 5)))
    assert [person.name for person in given] == ["seed_5", "seed_1"]


def test_every_photo_is_one_person(photos):
    (one,) = people.list_people(source(image=str(photos / "a.jpg")))
    assert one == people.Person("a", "a.jpg", photos=(photos / "a.jpg",))
    listed = people.list_people(source(image=str(photos)))
    assert [p.name for p in listed] == [
        "a", "ann_1", "ann_2", "ann_3", "b", "bo_x"
    ]  # fmt: skip
    for person in listed:
        (photo,) = person.photos
        assert photo.is_file()
        assert person.tests == ()


def test_out_of_domain_forgets_from_the_first_photos_and_tests_on_the_last(photos):
    both = people.list_people(source(image=str(photos), scenario="out_of_domain"))
    assert [p.name for p in both] == ["ann", "bo"]
    ann = photos / "ann"
    assert both[0].photos == (ann / "1.png", ann / "2.png")
    assert both[0].tests == (ann / "3.png",)
    assert both[0].title == "ann/1.png and 1 more"
    # With a single photo, there is none left to test on.
    assert both[1].photos == (photos / "bo" / "x.webp",)
    assert both[1].tests == ()
    assert both[1].title == "bo/x.webp"
    (one,) = people.list_people(source(image=str(ann), scenario="out_of_domain"))
    assert (one.name, one.photos) == ("ann", (ann / "1.png", ann / "2.png"))


@pytest.mark.parametrize(
    ("changes", "used", "title"),
    [
        ({"held_out": 0}, 3, "ann/1.png and 2 more"),
        ({"held_out": 2}, 1, "ann/1.png"),
        ({"held_out": 7}, 1, "ann/1.png"),
        ({"photos_per_person": 1}, 1, "ann/1.png"),
        ({"photos_per_person": 3}, 3, "ann/1.png and 2 more"),
        ({"photos_per_person": 9, "held_out": 2}, 3, "ann/1.png and 2 more"),
    ],
)
def test_the_settings_say_how_many_photos_are_used(photos, changes, used, title):
    ann = photos / "ann"
    given = source(image=str(ann), scenario="out_of_domain", **changes)
    (person,) = people.list_people(given)
    every = tuple(ann / f"{i}.png" for i in (1, 2, 3))
    assert (person.photos, person.tests) == (every[:used], every[used:])
    assert person.title == title


def test_names_are_unique_and_valid_as_folder_names(photos):
    for name in ("a.png", "A.webp", "ä ö.png", "-.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(photos / "ann" / name)
    names = [p.name for p in people.list_people(source(image=str(photos / "ann")))]
    assert len({name.lower() for name in names}) == len(names) == 7
    assert "ä_ö" in names
    assert not any("/" in name or name in (".", "..") for name in names)


def test_folders_without_photos_are_reported(photos):
    with pytest.raises(InputError, match="empty: no photos in it"):
        people.list_people(source(image=str(photos / "empty")))
    for scenario in ("in_domain", "out_of_domain"):
        with pytest.raises(InputError, match="none: no such"):
            people.list_people(source(image=str(photos / "none"), scenario=scenario))


def test_files_that_no_person_has_are_reported(photos):
    (photos / "ann" / "clip.mov").write_bytes(b"video")
    lines = people.left_out(source(image=str(photos), scenario="out_of_domain"))
    assert [line.split(":")[0] for line in lines] == [
        str(photos / name)
        for name in ("ann/clip.mov", "notes.txt", "a.jpg", "b.png", "empty")
    ]
    for reason in ("not a readable", "outside the people's", "without photos"):
        assert any(reason in line for line in lines)
    # One photo, one person: loose photos are people, and folders are not.
    lines = people.left_out(source(image=str(photos)))
    assert [line.split(":")[0] for line in lines] == [
        str(photos / name) for name in ("ann/clip.mov", "notes.txt")
    ]
    # Without sub-folders, only the folder's own files are named.
    (line,) = people.left_out(
        source(image=str(photos / "ann"), scenario="out_of_domain")
    )
    assert line.startswith(f"{photos / 'ann' / 'clip.mov'}: ")
    assert people.left_out(source()) == []
    assert people.left_out(source(image=str(photos / "a.jpg"))) == []


def test_long_names_fit_a_file_system(tmp_path):
    deep = tmp_path / ("ä" * 100) / ("b" * 200)
    deep.mkdir(parents=True)
    for name in ("c" * 240 + "1.png", "c" * 240 + "2.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(deep / name)
        (tmp_path / name).write_bytes((deep / name).read_bytes())
    names = [p.name for p in people.list_people(source(image=str(tmp_path)))]
    assert len(set(names)) == 4
    assert max(len(name.encode()) for name in names) < 230
    with pytest.raises(InputError, match="too long"):
        people.list_people(source(image=str(tmp_path / ("a" * 300))))


def test_the_home_folder_is_written_as_a_tilde(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    (one,) = people.list_people(source(image="~/a.jpg"))
    assert one.photos == (photos / "a.jpg",)
