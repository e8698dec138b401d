import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guide_jax.errors import InputError
from guide_jax.faces import folders


def write(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, kind)


def test_photos_are_found_by_suffix_and_by_contents(tmp_path):
    by_suffix = ["b.JPG", "a/z.jfif", "c.Png", "a/b/x.heic", "d.jpg/e.bmp"]
    for name in by_suffix:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    by_contents = {"IMG_1": "JPEG", "x.tga": "TGA", "y.txt": "GIF"}
    for name, kind in by_contents.items():
        write(tmp_path / name, kind)
    wanted = sorted(tmp_path / name for name in (*by_suffix, *by_contents))
    assert folders.list_photos(str(tmp_path)) == wanted


def test_other_files_are_named_with_the_reason(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "clip.mov").write_bytes(b"\0\0\0\x14ftypqt  ")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "empty.dat").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path / ".hidden.png")
    write(tmp_path / ".cache" / "x.jpg", "JPEG")
    (tmp_path / "._a.png").write_bytes(b"metadata")
    (tmp_path / ".DS_Store").write_bytes(b"metadata")
    photos, left_out = folders.sort_out(tmp_path)
    assert photos == [tmp_path / "a.png"]
    reasons = {}
    for line in left_out:
        path, _, why = line.partition(": ")
        reasons[Path(path).name] = why.split(",")[0].split(";")[0]
    assert reasons == {
        ".hidden.png": "hidden",
        "x.jpg": "hidden",
        "clip.mov": "not a readable image",
        "empty.dat": "not a readable image",
        "gone.jpg": "a link to a file that is missing",
        "notes.txt": "not a readable image",
        "pipe.png": "a pipe or device",
    }


def test_linked_folders_are_searched_once(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ann").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    wanted = [tmp_path / "photos" / "ann" / "1.png"]
    assert folders.list_photos(tmp_path / "photos") == wanted


def test_names_that_are_not_utf8_are_found(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path / name / f"{name}.png")
    assert folders.list_photos(tmp_path / name) == [tmp_path / name / f"{name}.png"]


def test_folders_without_photos_are_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r": no photos in it: .*a.txt: not a readable"):
        folders.list_photos(tmp_path)
    for path in (tmp_path / "none", tmp_path / "a.txt"):
        with pytest.raises(InputError, match=f"^{path}: no such folder of photos$"):
            folders.list_photos(path)


def test_many_lines_are_counted():
    assert folders.in_short(["a", "b"]) == "a; b"
    lines = [str(i) for i in range(13)]
    assert folders.in_short(lines) == "; ".join([*lines[:10], "and 3 more"])
