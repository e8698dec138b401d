import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from guide_jax.errors import InputError
from guide_jax.faces import photos

# Colours of a 16 x 16 image's quarters, in reading order from the top left.
RED, GREEN, BLUE, GREY = (220, 30, 20), (20, 210, 40), (10, 40, 230), (120, 120, 120)


def quarters(mode="RGB", size=(16, 16)):
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, GREY])
    return image.resize(size, Image.Resampling.NEAREST).convert(mode)


def pixels(photo):
    """Returns the uint8 colour at the centre of each quarter, in reading order."""
    side = photo.shape[1]
    near, far = side // 4, side * 3 // 4
    picked = [photo[0, y, x] for y in (near, far) for x in (near, far)]
    return photos.to_uint8(np.array(picked))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.bmp"])
def test_photos_are_read_as_float_rgb_in_minus_one_to_one(tmp_path, name):
    quarters(size=(64, 64)).save(tmp_path / name, quality=95)
    photo = photos.load_photo(tmp_path / name, 32)
    assert photo.shape == (1, 32, 32, 3)
    assert photo.dtype == np.float32
    assert -1 <= photo.min() < -0.8
    assert 0.7 < photo.max() <= 1
    np.testing.assert_allclose(pixels(photo), [RED, GREEN, BLUE, GREY], atol=6)


def test_a_png_of_the_requested_size_is_read_exactly(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "x.png")
    photo = photos.load_photo(str(tmp_path / "x.png"), 8)
    np.testing.assert_allclose(photo[0], array / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(photos.to_uint8(photo[0]), array)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_grey_palette_and_alpha_become_rgb(tmp_path, mode):
    name = "x.tif" if mode == "CMYK" else "x.png"
    image = quarters(mode)
    image.save(tmp_path / name)
    photo = photos.load_photo(tmp_path / name, 16)
    assert photo.shape == (1, 16, 16, 3)
    wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(photos.to_uint8(photo[0]), wanted)


def png16(path, array):
    """Writes [H, W, channels] as a 16-bit PNG, which Pillow cannot do."""
    H, W, channels = array.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", W, H, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_16_bit_png_keeps_its_brightness(tmp_path, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (8, 8, channels))
    levels[0, 0], levels[0, 1] = 0, 65535
    if channels in (2, 4):
        levels[..., -1] = 65535  # opaque
    png16(tmp_path / "x.png", levels)
    image = photos.read_image(tmp_path / "x.png")
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    colour = levels[..., : 1 if channels < 3 else 3]
    # Pillow keeps the upper byte of 16-bit colours.
    np.testing.assert_allclose(image, np.broadcast_to(colour / 257, (8, 8, 3)), atol=1)
    assert image[0, 0].max() == 0
    assert image[0, 1].min() == 255


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_a_16_bit_tiff_is_rotated_and_scaled(tmp_path, order):
    grey = np.linspace(0, 65535, 256).reshape(16, 16).astype(order)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(grey).save(tmp_path / "x.tif", exif=exif)
    photo = photos.load_photo(tmp_path / "x.tif", 16)
    levels = photos.to_uint8(photo[0, ::-1, ::-1])
    np.testing.assert_array_equal(levels, np.rint(grey / 257)[..., None].repeat(3, 2))


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.gif"])
def test_transparent_pixels_are_shown_on_white(tmp_path, name):
    image = quarters("RGBA")
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste(clear, (8, 0))
    image.save(tmp_path / name, lossless=True)
    photo = photos.load_photo(tmp_path / name, 16)
    np.testing.assert_array_equal(pixels(photo), [RED, (255, 255, 255), BLUE, GREY])


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("LA", (4, 4), (100, 51)).save(tmp_path / "x.png")  # alpha of a fifth
    image = photos.read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image, 224)  # 0.2 * 100 + 0.8 * 255


def test_a_cmyk_jpeg_is_read(tmp_path):
    quarters("CMYK", (64, 64)).save(tmp_path / "x.jpg", quality=95)
    photo = photos.load_photo(tmp_path / "x.jpg", 32)
    np.testing.assert_allclose(pixels(photo), [RED, GREEN, BLUE, GREY], atol=6)


def test_photos_in_a_folder_are_listed_by_suffix(tmp_path):
    names = ["b.JPG", "a/z.jpeg", "a/10.webp", "c.Png", "a/b/x.tif", "d.jpg/e.bmp"]
    others = ["a.txt", "jpg", "._b.jpg", ".cache/x.png", "a/.png"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    wanted = ["a/10.webp", "a/b/x.tif", "a/z.jpeg", "b.JPG", "c.Png", "d.jpg/e.bmp"]
    assert photos.list_photos(str(tmp_path)) == [tmp_path / name for name in wanted]


def test_folders_without_photos_are_rejected(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r": no photos in it \(\.jpg, "):
        photos.list_photos(tmp_path)
    for path in (tmp_path / "none", tmp_path / "a.txt"):
        with pytest.raises(InputError, match=f"^{path}: no such folder of photos$"):
            photos.list_photos(path)


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise
    quarters().save(tmp_path / "x.png", exif=exif)
    photo = photos.load_photo(tmp_path / "x.png", 16)
    np.testing.assert_array_equal(pixels(photo), [BLUE, RED, GREY, GREEN])


@pytest.mark.parametrize("size", [(48, 16), (16, 48)])
def test_non_square_photos_are_cropped_to_their_centre(tmp_path, size):
    image = Image.new("RGB", size, (255, 255, 255))
    corner = tuple((side - 16) // 2 for side in size)
    image.paste(quarters(), corner)
    image.save(tmp_path / "x.png")
    photo = photos.load_photo(tmp_path / "x.png", 16)
    np.testing.assert_array_equal(photos.to_uint8(photo[0]), np.asarray(quarters()))


def encoded(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def error_message(path):
    """Returns the error's message: one line that starts with the file's path."""
    with pytest.raises(InputError) as caught:
        photos.load_photo(path, 16)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_missing_files_and_folders_are_rejected(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        assert "no such photo; check --config.source.image" in error_message(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"<html>", b"\x93NUMPY\x01"])
def test_files_that_are_not_images_are_rejected(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    assert "not a readable image" in error_message(tmp_path / "x.jpg")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_images_of_unknown_range_are_rejected(tmp_path, mode):
    quarters(mode).save(tmp_path / "x.tif")
    text = error_message(tmp_path / "x.tif")
    assert f"mode {mode!r} (unknown value range); save it with 8 or 16" in text


def test_huge_images_are_rejected(tmp_path, monkeypatch):
    quarters().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "image too large" in error_message(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_rejected(tmp_path, kind):
    whole = encoded(kind)
    for length in range(len(whole) // 8, len(whole) - 64, len(whole) // 8):
        (tmp_path / "x.jpg").write_bytes(whole[:length])
        error_message(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) // 2])
    if kind != "WEBP":  # Pillow cannot even open a truncated WebP file
        assert "damaged image" in error_message(tmp_path / "x.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about EXIF and TIFF tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "AVIF"])
def test_damaged_images_are_read_or_rejected_but_never_crash(tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow version cannot read AVIF")
    whole, rng = encoded(kind), np.random.default_rng(0)
    path = tmp_path / "x.jpg"
    for _ in range(40):
        damaged = bytearray(whole)
        for at in (*rng.integers(0, 200, 2), *rng.integers(0, len(whole), 3)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert photos.load_photo(path, 16).shape == (1, 16, 16, 3)
        except InputError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017


def test_to_uint8_rounds_and_clips():
    levels = np.arange(256)
    exact = levels / 127.5 - 1
    np.testing.assert_array_equal(photos.to_uint8(exact), levels)
    for shift in (-0.4, 0.4):  # in units of one uint8 level
        shifted = exact + shift / 127.5
        np.testing.assert_array_equal(photos.to_uint8(shifted), levels)
    np.testing.assert_array_equal(photos.to_uint8(np.array([-7.0, 7.0])), [0, 255])
    assert photos.to_uint8(np.zeros((2, 3), np.float32)).dtype == np.uint8
