import numpy as np
import pytest
import red_faces
from PIL import Image

from guide_jax.errors import InputError
from guide_jax.faces import align, photos

FACE = np.array([[70, 60], [110, 60], [90, 85], [75, 105], [105, 105]], float)


def turned(points, degrees, scale=1.0, shift=(0, 0)):
    """Turns points about their mean, clockwise as one sees it, and scales them."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = points.mean(0)
    return (points - middle) @ matrix.T * scale + middle + shift


def ramp(height, width):
    """Returns [height, width, 3]: red grows with x, green with y; blue is 50."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 50)], -1).astype(np.uint8)


def seen(crop):
    """Returns the x and y [..., 2] that a crop of `ramp` shows."""
    return (crop[..., :2] + 1) * 127.5


# ArcFace ------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 30, -75])
def test_arcface_crop_has_the_points_in_their_places(degrees):
    points = turned(align.ARCFACE_POINTS, degrees, 0.8, (40, 60))
    crop = align.align_arcface(ramp(230, 240), points)
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.float32
    # Wherever the crop is from, it shows the photo at the place that is turned too.
    y, x = np.mgrid[:112, :112]
    grid = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    middle = align.ARCFACE_POINTS.mean(0)
    moved = turned(np.concatenate([grid - middle, middle - grid]), degrees, 0.8)
    wanted = moved[: len(grid)] + middle + (40, 60)
    np.testing.assert_allclose(seen(crop).reshape(-1, 2), wanted, atol=1e-3)


def test_arcface_crop_of_another_size_shows_the_same():
    points = turned(align.ARCFACE_POINTS, 10, 0.8, (40, 60))
    image = ramp(230, 240)
    whole, half = (align.align_arcface(image, points, n) for n in (112, 56))
    np.testing.assert_allclose(half, whole[::2, ::2], atol=1e-4)


def test_arcface_fit_is_of_least_squares_in_the_photo():
    noise = np.random.default_rng(0).normal(0, 3, (5, 2))
    points = turned(align.ARCFACE_POINTS, 20, 1.1, (40, 60)) + noise
    crop = seen(align.align_arcface(ramp(255, 255), points))
    base = crop[0, 0]
    x_axis, y_axis = crop[0, 1] - base, crop[1, 0] - base
    np.testing.assert_allclose(y_axis, [-x_axis[1], x_axis[0]], atol=1e-3)

    def error(a, b, c, d):
        x, y = align.ARCFACE_POINTS.T
        return np.sum(
            (np.stack([a * x - b * y + c, b * x + a * y + d], 1) - points) ** 2
        )

    best = *x_axis, *base
    least = error(*best)
    assert least > 1
    for i in range(4):
        for step in (-0.01, 0.01):
            other = list(best)
            other[i] += step * (100 if i > 1 else 1)
            assert error(*other) > least


def test_arcface_crop_is_black_outside_the_picture():
    image = np.full((60, 60, 3), 255, np.uint8)
    crop = align.align_arcface(image, align.ARCFACE_POINTS)
    np.testing.assert_array_equal(crop[:60, :60], 1)
    np.testing.assert_array_equal(crop[61:], -1)
    np.testing.assert_array_equal(crop[:, 61:], -1)


@pytest.mark.parametrize("function", [align.align_arcface, align.align_ffhq])
def test_float_and_uint8_pictures_give_the_same(function):
    image = ramp(200, 200)
    a = function(image, FACE, 64)
    b = function(image.astype(np.float32) / 127.5 - 1, FACE, 64)
    np.testing.assert_allclose(a, b, atol=1e-5)


# FFHQ ---------------------------------------------------------------------------------


def test_ffhq_quad_is_the_published_one():
    # Eyes 40 apart, the mouth 45 below: 2.0 * 40 and 1.8 * 45 = 81 from the middle,
    # which is a tenth of the way from the eyes to the mouth.
    wanted = np.array([[9, -16.5], [9, 145.5], [171, 145.5], [171, -16.5]])
    np.testing.assert_allclose(align.ffhq_quad(FACE), wanted)
    wide = FACE * [2, 1]  # now the eyes decide: 2.0 * 80
    wanted = np.array([[20, -95.5], [20, 224.5], [340, 224.5], [340, -95.5]])
    np.testing.assert_allclose(align.ffhq_quad(wide), wanted)


@pytest.mark.parametrize("degrees", [15, 90, 180])
def test_ffhq_quad_turns_with_the_face(degrees):
    corners = align.ffhq_quad(FACE)
    moved = turned(np.concatenate([FACE, 2 * FACE.mean(0) - FACE]), degrees, 1.3)[:5]
    angle = np.deg2rad(degrees)
    matrix = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = FACE.mean(0)
    wanted = (corners - middle) @ np.transpose(matrix) * 1.3 + middle
    np.testing.assert_allclose(align.ffhq_quad(moved), wanted, atol=1e-9)


# At 16 pixels the photo is shrunk by 4 first, and the published way of doing that moves
# the crop by 1.5 pixels of the photo.
@pytest.mark.parametrize(("size", "moved"), [(16, 1.5), (64, 0), (256, 0)])
@pytest.mark.parametrize("degrees", [0, 25])
def test_ffhq_crop_shows_the_quad(size, moved, degrees):
    points = turned(0.8 * FACE, degrees, shift=(60, 60))
    corners = align.ffhq_quad(points)
    assert corners.min() > 10, "the case is about crops within the picture"
    crop = align.align_ffhq(ramp(252, 252), points, size)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.float32
    assert np.abs(crop).max() <= 1
    at = (np.arange(size) + 0.5) / size
    right, down = corners[3] - corners[0], corners[1] - corners[0]
    wanted = corners[0] + at[:, None, None] * down + at[None, :, None] * right
    error = np.abs(seen(crop) - wanted - moved)
    assert error.mean() < 0.8, "pixels are cut to 8 bits on the way"
    assert error.max() < 2.5
    np.testing.assert_allclose(crop[..., 2], 50 / 127.5 - 1, atol=1e-6)


def test_ffhq_crop_beyond_the_picture_is_mirrored_and_fades():
    image = np.full((200, 200, 3), 200, np.uint8)
    image[:, :100] = 40  # half and half
    image[120:, 100:] = 90
    points = FACE + np.array([60, 80])
    corners = align.ffhq_quad(points)
    assert corners.max() > 220
    size = 162  # a pixel of the crop is one of the photo
    crop = (align.align_ffhq(image, points, size) + 1) * 127.5
    left, top = corners[0]
    inside = crop[: int(195 - top) - 40, : int(195 - left) - 40]
    assert set(np.rint(inside[..., 0]).ravel()) >= {40, 200}
    y, x = (np.arange(size) + 0.5 + start for start in (top, left))
    real = image[np.ix_(y[y < 150].astype(int), x[x < 150].astype(int))]
    error = np.abs(crop[: len(real), : real.shape[1]] - real)
    assert np.median(error) < 1
    outside = crop[y > 210]
    assert np.abs(outside - outside.mean((0, 1))).max() < 120
    assert outside.min() > 30, "neither black nor white"
    assert outside.max() < 210


def test_a_face_partly_outside_and_larger_than_the_picture():
    image = ramp(60, 40)
    crop = align.align_ffhq(image, FACE - np.array([60, 50]), 32)
    assert np.isfinite(crop).all()
    assert crop.shape == (32, 32, 3)


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.zeros((5, 3)), np.zeros(10)])
@pytest.mark.parametrize("function", [align.align_arcface, align.align_ffhq])
def test_other_points_are_named(function, points):
    with pytest.raises(ValueError, match=r"five points \[5, 2\] are needed, not \["):
        function(ramp(8, 8), points, 8)


def test_points_in_one_place_make_no_face():
    with pytest.raises(ValueError, match="don't make a face"):
        align.align_ffhq(ramp(8, 8), np.ones((5, 2)), 8)


# Photos -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mtcnn():
    return red_faces.RedMTCNN()


@pytest.fixture
def save(tmp_path):
    """Writes a picture with red squares; returns its path."""

    def save(height, width, *squares, **options):
        path = tmp_path / "photo.png"
        image = red_faces.picture(height, width, *squares)
        Image.fromarray(image).save(path, **options)
        return path

    return save


def check_red_square(photo, size):
    """Checks that the square is where FFHQ's crop has it."""
    assert photo.shape == (1, size, size, 3)
    assert photo.dtype == np.float32
    red = (photo[0, ..., 0] - photo[0, ..., 1]) / 2 > 0.5
    y, x = np.nonzero(red)
    side = red_faces.FFHQ_SIDE
    assert np.sqrt(red.sum()) / size == pytest.approx(1 / side, abs=0.03)
    assert (x.mean() + 0.5) / size == pytest.approx(0.5, abs=0.03)
    middle = 0.5 + red_faces.FFHQ_UP / side
    assert (y.mean() + 0.5) / size == pytest.approx(middle, abs=0.03)


@pytest.mark.parametrize("size", [32, 128])
def test_face_is_brought_to_ffhq_s_place(save, mtcnn, size):
    path = save(300, 400, (170, 110, 60))
    photo, note = align.prepare_photo(path, mtcnn, size, "ffhq")
    check_red_square(photo, size)
    assert note.startswith(f"{path}: its face, in columns 15")
    assert "\n" not in note


def test_largest_of_several_faces_is_taken_and_told(save, mtcnn):
    path = save(300, 400, (40, 120, 40), (200, 110, 70))
    photo, note = align.prepare_photo(str(path), mtcnn, 64, "ffhq")
    check_red_square(photo, 64)
    assert note.startswith(f"{path}: the largest of 2 faces, in columns ")


def test_exif_is_honoured(save, mtcnn):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = save(400, 300, (60, 220, 60), exif=exif)
    photo, note = align.prepare_photo(path, mtcnn, 64, "ffhq")
    check_red_square(photo, 64)
    # The column is that of the turned picture: 400 - 220 - 30 is the middle.
    assert any(f"columns {left} " in note for left in range(100, 112))


def test_an_aligned_photo_is_left_as_it_is(save, mtcnn):
    path = save(200, 200, (50, 66, 100))
    photo, note = align.prepare_photo(path, mtcnn, 64, "ffhq")
    np.testing.assert_array_equal(photo, photos.load_photo(path, 64))
    assert note == f"{path}: its face is where FFHQ has it; taken as it is"


def test_align_none_is_load_photo_and_needs_no_detector(save):
    path = save(150, 240, (20, 20, 60))
    photo, note = align.prepare_photo(path, None, 64, "none")
    np.testing.assert_array_equal(photo, photos.load_photo(path, 64))
    assert note == ""


def refusal(path, mtcnn, way="ffhq"):
    with pytest.raises(InputError) as caught:
        align.prepare_photo(path, mtcnn, 64, way)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_aligned_is_refused_in_one_line(save, mtcnn, tmp_path):
    path = save(100, 100)
    text = refusal(path, mtcnn)
    assert text.startswith(f"{path}: no face found; give a photo that shows one")
    text = refusal(path, None)
    assert text.startswith(f"{path}: to align photos a face detector is needed")
    assert "no such photo" in refusal(tmp_path / "none.jpg", mtcnn)
    text = refusal(path, mtcnn, "eyes")
    assert text == "no way 'eyes' to align photos; choose 'none' or 'ffhq'"
    path = save(100, 100, (40, 40, 19))
    text = refusal(path, mtcnn)
    assert text.startswith(f"{path}: the face in it is too small (2")
    assert "at least 32 are needed" in text
