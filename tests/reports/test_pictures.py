"""The images of a run: the before-and-after sheet and the numbered files."""

import numpy as np
from PIL import Image

from guide_jax.reports import pictures

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 20), (20, 200, 200),
           (200, 20, 200), (90, 90, 90), (160, 160, 160)]  # fmt: skip


def flat(colour, size=24):
    return np.broadcast_to(np.array(colour) / 127.5 - 1, (size, size, 3))


def test_before_after_shows_every_image_in_its_position(tmp_path):
    images = [flat(colour) for colour in COLOURS]
    path = tmp_path / "x.png"
    pictures.before_after(
        path,
        {"before": images[0], "after": images[1]},
        [],
        (np.stack(images[2:5]), np.stack(images[5:])),
        "caption",
    )
    with Image.open(path) as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        sheet = np.asarray(opened)
    # Three columns of 192 + 8; three rows of 22 + 192 + 8 under a caption of 22 + 8.
    assert sheet.shape == (30 + 3 * 222, 8 + 3 * 200, 3)
    positions = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    for (row, column), colour in zip(positions, COLOURS, strict=True):
        top, left = 30 + 222 * row + 22, 8 + 200 * column
        tile = sheet[top : top + 192, left : left + 192]
        assert (tile == colour).all(), (row, column)
        for y, x in ((top - 1, left), (top, left - 1), (top + 192, left)):
            assert tuple(sheet[y, x]) != colour
    assert (sheet[52:, 408:600][:192] == 255).all()  # the first row has two images
    assert (sheet[:30] != 255).any()  # the caption


def test_before_after_is_as_wide_as_the_person_needs(tmp_path):
    people = {name: flat(COLOURS[0]) for name in "abcd"}
    one = np.stack([flat(COLOURS[1])])
    pictures.before_after(tmp_path / "x.png", people, [], (one, one), "")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (8 + 4 * 200, 696)


def test_before_after_has_a_row_for_each_test_photo(tmp_path):
    images = [flat(colour) for colour in COLOURS]
    tests = [tuple(images[1:4]), tuple(images[4:7])]
    one = np.stack([images[7]])
    path = tmp_path / "x.png"
    pictures.before_after(path, {"photo": images[0]}, tests, (one, one), "")
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (30 + 5 * 222, 8 + 3 * 200, 3)
    positions = [(0, 0), *((row, column) for row in (1, 2) for column in range(3))]
    positions += [(3, 0), (4, 0)]
    for (row, column), colour in zip(positions, [*COLOURS, COLOURS[7]], strict=True):
        top, left = 30 + 222 * row + 22, 8 + 200 * column
        assert (sheet[top : top + 192, left : left + 192] == colour).all()
        # The row's title or the image's label is above it.
        assert (sheet[top - 22 : top, left : left + 192] != 255).any()


def test_images_are_numbered_and_replace_earlier_ones(tmp_path):
    (tmp_path / "mine.png").write_text("not theirs to remove")
    pictures.save_images(
        tmp_path, {"before": flat(COLOURS[0]), "after": flat(COLOURS[1])}
    )
    pictures.save_images(tmp_path, {"reconstruction before": flat(COLOURS[2])})
    path, mine = sorted(tmp_path.iterdir())
    assert path.name == "1_reconstruction_before.png"
    assert mine.name == "mine.png"
    with Image.open(path) as image:
        assert image.size == (24, 24)
        assert image.getpixel((3, 3)) == COLOURS[2]


def test_test_photos_follow_the_person_s_images(tmp_path):
    images = [flat(colour) for colour in COLOURS]
    person = {"photo": images[0], "after": images[1]}
    pictures.save_images(tmp_path, person, [tuple(images[2:5]), tuple(images[5:])])
    paths = pictures.stored_images(tmp_path)
    assert [path.name for path in paths] == [
        "1_photo.png", "2_after.png",
        "3_test_photo.png", "4_reconstruction_before.png", "5_after.png",
        "6_test_photo.png", "7_reconstruction_before.png", "8_after.png",
    ]  # fmt: skip
    for path, colour in zip(paths, COLOURS, strict=True):
        with Image.open(path) as image:
            assert image.getpixel((3, 3)) == colour


def test_more_than_nine_images_keep_their_order_and_are_replaced(tmp_path):
    black = flat((0, 0, 0))
    for name in ("11.png", "2_mine.png", "x_after.png", "01_after.png"):
        (tmp_path / name).write_text("not theirs to remove")
    pictures.save_images(tmp_path, {"photo": black}, [(black,) * 3] * 4)
    stored = pictures.stored_images(tmp_path)
    numbers = [path.name.partition("_")[0] for path in stored]
    assert numbers == [str(i) for i in range(1, 14)]
    assert [pictures.label_of(path) for path in stored] == [
        "photo", *(("test photo", "reconstruction before", "after") * 4)
    ]  # fmt: skip
    pictures.save_images(tmp_path, {"before": black})
    assert {path.name for path in tmp_path.iterdir()} == {
        "1_before.png", "11.png", "2_mine.png", "x_after.png", "01_after.png"
    }  # fmt: skip
