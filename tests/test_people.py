import numpy as np
import pytest
from PIL import Image

from configs import default
from guide_jax import people
from guide_jax.errors import InputError


def source(**changes):
    config = default.get_config().source
    config.update(changes)
    return config


@pytest.fixture
def photos(tmp_path):
    """Returns a folder: two photos, two people's folders, a text, an empty folder."""
    for name in ("b.png", "a.jpg", "ann/2.png", "ann/1.png", "ann/3.png", "bo/x.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_sampled_people_are_of_seeds_in_a_row_or_of_given_ones():
    (one,) = people.listed(source(seed=7))
    assert one == people.Person("seed_7", "seed 7", seed=7)
    row = people.listed(source(seed=7, count=3))
    assert [person.seed for person in row] == [7, 8, 9]
    given = people.listed(source(seeds=(5, 1, 5)))
    assert [person.name for person in given] == ["seed_5", "seed_1"]


def test_a_photo_is_a_person_and_a_folder_s_photos_are_one_each(photos):
    (one,) = people.listed(source(image=str(photos / "a.jpg")))
    assert one == people.Person("a", "a.jpg", photo=photos / "a.jpg")
    everybody = people.listed(source(image=str(photos)))
    assert [p.name for p in everybody] == [
        "a", "ann_1", "ann_2", "ann_3", "b", "bo_x"
    ]  # fmt: skip
    assert all(p.photo.is_file() and p.tests == () for p in everybody)


def test_out_of_domain_forgets_from_one_photo_and_tests_on_the_others(photos):
    both = people.listed(source(image=str(photos), scenario="out_of_domain"))
    assert [p.name for p in both] == ["ann", "bo"]
    ann = photos / "ann"
    assert both[0].photo == ann / "1.png"
    assert both[0].tests == (ann / "2.png", ann / "3.png")
    assert both[0].title == "ann/1.png"
    assert both[1].tests == ()
    (one,) = people.listed(source(image=str(ann), scenario="out_of_domain"))
    assert (one.name, one.photo) == ("ann", ann / "1.png")


def test_names_are_fit_for_folders_and_no_two_are_the_same(photos):
    for name in ("a.png", "A.webp", "ä ö.png", "-.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(photos / "ann" / name)
    names = [p.name for p in people.listed(source(image=str(photos / "ann")))]
    assert len({name.lower() for name in names}) == len(names) == 7
    assert "ä_ö" in names
    assert not any("/" in name or name in (".", "..") for name in names)


def test_folders_without_photos_are_named(photos):
    with pytest.raises(InputError, match="empty: no photos in it"):
        people.listed(source(image=str(photos / "empty")))
    for scenario in ("in_domain", "out_of_domain"):
        with pytest.raises(InputError, match="none: no such"):
            people.listed(source(image=str(photos / "none"), scenario=scenario))


def test_what_belongs_to_nobody_is_named(photos, capsys):
    people.listed(source(image=str(photos), scenario="out_of_domain"))
    out = capsys.readouterr().out
    assert "photos in no folder: a.jpg, b.png" in out
    assert "no photos in: empty" in out
