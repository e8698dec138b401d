import errno
import io
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, features

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


def encoded(kind, side=64):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
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


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_32_bit_grey_is_scaled_by_its_range(tmp_path, dtype):
    levels = np.arange(256).reshape(16, 16)
    Image.fromarray((levels * 7 - 300).astype(dtype)).save(tmp_path / "x.tif")
    image = photos.read_image(tmp_path / "x.tif")
    np.testing.assert_array_equal(image, levels[..., None].repeat(3, 2))


def test_values_that_are_not_finite_are_black_or_white(tmp_path):
    values = np.array([[0, 1, np.nan, np.inf, -np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    image = photos.read_image(tmp_path / "x.tif")
    np.testing.assert_array_equal(image[0, :, 0], [0, 255, 0, 255, 0])
    for value in (7, np.nan):
        Image.fromarray(np.full((2, 2), value, np.float32)).save(tmp_path / "x.tif")
        assert not photos.read_image(tmp_path / "x.tif").any()


def test_long_texts_in_a_png_are_no_fault(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("history", "x" * (2 << 20), zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "x" * (2 << 20), zip=True)
    quarters().save(tmp_path / "x.png", pnginfo=texts)
    assert photos.read_image(tmp_path / "x.png").shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
def test_a_resolution_of_0_by_0_is_no_fault(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, TiffImagePlugin.IFDRational(1, 1)
    quarters(size=(48, 32)).save(tmp_path / name, exif=exif, quality=95)
    data = (tmp_path / name).read_bytes()
    changed = data
    for order in "<>":  # of the bytes
        one, zero = (struct.pack(f"{order}II", x, x) for x in (1, 0))
        changed = changed.replace(one, zero)
    assert changed != data
    if name == "x.png":  # its checksum
        at = changed.index(b"eXIf")
        length = struct.unpack(">I", changed[at - 4 : at])[0]
        end = at + 4 + length
        check = struct.pack(">I", zlib.crc32(changed[at:end]))
        changed = changed[:end] + check + changed[end + 4 :]
    (tmp_path / name).write_bytes(changed)
    image = photos.read_image(tmp_path / name)
    assert image.shape == (48, 32, 3)
    corner = np.abs(image[4, 4].astype(int) - BLUE)
    assert corner.max() < 30, "turned"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_ignored(tmp_path):
    quarters().save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 22)
    assert photos.read_image(tmp_path / "x.jpg").shape == (16, 16, 3)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    for name in ("x.gif", "x.png", "x.webp"):
        others = [Image.new("RGB", (16, 16))]
        frame = Image.new("RGB", (16, 16), "white")
        frame.save(tmp_path / name, save_all=True, append_images=others)
        assert photos.read_image(tmp_path / name).min() > 250


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16", "F", "RGBA", "1"])
def test_large_photos_are_reduced(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(photos, "LARGE", 50 * 100)
    image = quarters(size=(400, 200))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    name = "x.jpg" if mode in ("RGB", "CMYK") else "x.tif"
    image.save(tmp_path / name, quality=95)
    found = photos.read_image(tmp_path / name)
    assert found.shape == (50, 100, 3)
    whole = np.asarray(
        quarters(size=(100, 50)).convert("L" if mode in "LI;16" else "RGB")
    )
    if mode not in ("1", "F"):  # dithered, and scaled by its range
        error = np.abs(
            found[::7, ::7].astype(int) - whole.reshape(50, 100, -1)[::7, ::7]
        )
        assert np.median(error) < 6


def test_a_large_jpeg_is_decoded_at_reduced_size(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "LARGE", 50 * 100)
    quarters(size=(800, 400)).save(tmp_path / "x.jpg")
    loaded, load = [], JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "load",
        lambda self: loaded.append(self.size) or load(self),
    )
    photos.read_image(tmp_path / "x.jpg")
    assert loaded[0] == (100, 50)


def test_huge_images_are_rejected(tmp_path, monkeypatch):
    claims = {
        "x.png": (encoded("PNG"), b"IHDR", 4, ">II"),
        "x.jpg": (encoded("JPEG"), b"\xff\xc0", 5, ">HH"),
        "x.gif": (encoded("GIF"), b"GIF8", 6, "<HH"),
        "x.bmp": (encoded("BMP"), b"BM", 18, "<ii"),
    }
    for name, (data, mark, offset, form) in claims.items():
        for side in (65_500, 20_000):  # Pillow refuses the former, we the latter
            at = data.index(mark) + offset
            sides = struct.pack(form, side, side)
            claim = data[:at] + sides + data[at + len(sides) :]
            if name == "x.png":
                check = struct.pack(">I", zlib.crc32(claim[12:29]))
                claim = claim[:29] + check + claim[33:]
            (tmp_path / name).write_bytes(claim)
            text = error_message(tmp_path / name)
            assert text.endswith("image too large; at most 268 megapixels are read, so"
                                 " save it smaller")  # fmt: skip


def test_memory_and_the_system_are_not_the_photo_s_fault(tmp_path, monkeypatch):
    quarters().save(tmp_path / "x.png")
    for error in (MemoryError("4 GiB"), jax.errors.JaxRuntimeError("no device")):
        monkeypatch.setattr(photos, "_rgb", lambda _, error=error: raising(error))
        with pytest.raises(type(error)):
            photos.read_image(tmp_path / "x.png")
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(photos, "_rgb", lambda _: raising(denied))
    text = error_message(tmp_path / "x.png")
    assert text.endswith("cannot be read (Permission denied)")


def raising(error):
    raise error


def test_a_name_that_is_too_long_gives_one_line(tmp_path):
    text = error_message(tmp_path / ("a" * 300 + ".jpg"))
    assert text.endswith("cannot be read (File name too long)")


def test_heic_says_what_it_needs(tmp_path):
    path = tmp_path / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    monkey = [x for x in photos._formats() if x != "HEIF"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "_formats", lambda: monkey)
        assert "pip install pillow-heif" in error_message(path)


def test_heic_is_read_upright(tmp_path):
    pytest.importorskip("pillow_heif")
    assert "HEIF" in photos._formats()  # registers it
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters(size=(64, 64)).save(tmp_path / "x.heic", exif=exif.tobytes(), quality=95)
    photo = photos.load_photo(tmp_path / "x.heic", 64)
    np.testing.assert_allclose(pixels(photo), [BLUE, RED, GREY, GREEN], atol=12)


def test_postscript_is_not_read(tmp_path):
    # Pillow would run Ghostscript.
    (tmp_path / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    assert "not a readable image" in error_message(tmp_path / "x.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_images_truncated_at_any_byte_are_rejected(tmp_path, kind):
    whole = encoded(kind, side=6)
    path = tmp_path / "x.jpg"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:  # only the end of the file may be missing
            assert photos.read_image(path).shape == (6, 6, 3)
            assert length > len(whole) - 24
        except InputError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


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
