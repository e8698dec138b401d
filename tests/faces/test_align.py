import numpy as np
import pytest
import red_faces
from PIL import Image

from guide_jax.errors import InputError
from guide_jax.faces import align, photos
from guide_jax.faces.pose import MEAN_FACE, Pose, project

FACE = np.array([[70, 60], [110, 60], [90, 85], [75, 105], [105, 105]], float)


def turned(points, degrees, scale=1.0, shift=(0, 0)):
    """Rotates points about their mean, clockwise on screen, then scales and shifts."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = points.mean(0)
    return (points - middle) @ matrix.T * scale + middle + shift


def ramp(height, width):
    """Returns [height, width, 3]: red grows with x, green with y; blue is 50."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 50)], -1).astype(np.uint8)


def positions(crop):
    """Returns the photo's x and y [..., 2] that a crop of `ramp` shows."""
    return (crop[..., :2] + 1) * 127.5


def align_ffhq(image, points, size):
    return align.cut(image, align.ffhq_quad(points), size)


# ArcFace ------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 30, -75])
def test_arcface_crop_places_the_points_correctly(degrees):
    points = turned(align.ARCFACE_POINTS, degrees, 0.8, (40, 60))
    crop = align.align_arcface(ramp(230, 240), points)
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.float32
    # Every pixel of the crop shows the photo at the equally rotated position.
    y, x = np.mgrid[:112, :112]
    grid = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    middle = align.ARCFACE_POINTS.mean(0)
    moved = turned(np.concatenate([grid - middle, middle - grid]), degrees, 0.8)
    wanted = moved[: len(grid)] + middle + (40, 60)
    np.testing.assert_allclose(positions(crop).reshape(-1, 2), wanted, atol=1e-3)


def test_arcface_crops_of_different_sizes_show_the_same_area():
    points = turned(align.ARCFACE_POINTS, 10, 0.8, (40, 60))
    image = ramp(230, 240)
    whole, half = (align.align_arcface(image, points, n) for n in (112, 56))
    np.testing.assert_allclose(half, whole[::2, ::2], atol=1e-4)


def test_arcface_fit_minimises_squared_error_in_the_photo():
    noise = np.random.default_rng(0).normal(0, 3, (5, 2))
    points = turned(align.ARCFACE_POINTS, 20, 1.1, (40, 60)) + noise
    crop = positions(align.align_arcface(ramp(255, 255), points))
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


def test_arcface_crop_is_black_outside_the_image():
    image = np.full((60, 60, 3), 255, np.uint8)
    crop = align.align_arcface(image, align.ARCFACE_POINTS)
    np.testing.assert_array_equal(crop[:60, :60], 1)
    np.testing.assert_array_equal(crop[61:], -1)
    np.testing.assert_array_equal(crop[:, 61:], -1)


@pytest.mark.parametrize("function", [align.align_arcface, align_ffhq])
def test_float_and_uint8_images_give_equal_crops(function):
    image = ramp(200, 200)
    a = function(image, FACE, 64)
    b = function(image.astype(np.float32) / 127.5 - 1, FACE, 64)
    np.testing.assert_allclose(a, b, atol=1e-5)


# FFHQ ---------------------------------------------------------------------------------


def test_ffhq_quad_matches_the_published_formula():
    # Eyes 40 px apart, mouth 45 px below: the sides are max(2.0 * 40, 1.8 * 45) = 81
    # from the centre, which is a tenth of the way from the eyes to the mouth.
    wanted = np.array([[9, -16.5], [9, 145.5], [171, 145.5], [171, -16.5]])
    np.testing.assert_allclose(align.ffhq_quad(FACE), wanted)
    wide = FACE * [2, 1]  # now the eye distance is decisive: 2.0 * 80
    wanted = np.array([[20, -95.5], [20, 224.5], [340, 224.5], [340, -95.5]])
    np.testing.assert_allclose(align.ffhq_quad(wide), wanted)


@pytest.mark.parametrize("degrees", [15, 90, 180])
def test_ffhq_quad_rotates_with_the_face(degrees):
    corners = align.ffhq_quad(FACE)
    moved = turned(np.concatenate([FACE, 2 * FACE.mean(0) - FACE]), degrees, 1.3)[:5]
    angle = np.deg2rad(degrees)
    matrix = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = FACE.mean(0)
    wanted = (corners - middle) @ np.transpose(matrix) * 1.3 + middle
    np.testing.assert_allclose(align.ffhq_quad(moved), wanted, atol=1e-9)


# At 16 px the photo is first shrunk by a factor of 4, and the published method of doing
# so shifts the crop by 1.5 photo pixels.
@pytest.mark.parametrize(("size", "moved"), [(16, 1.5), (64, 0), (256, 0)])
@pytest.mark.parametrize("degrees", [0, 25])
def test_ffhq_crop_shows_the_quad(size, moved, degrees):
    points = turned(0.8 * FACE, degrees, shift=(60, 60))
    corners = align.ffhq_quad(points)
    assert corners.min() > 10, "this case needs a crop within the image"
    crop = align_ffhq(ramp(252, 252), points, size)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.float32
    assert np.abs(crop).max() <= 1
    at = (np.arange(size) + 0.5) / size
    right, down = corners[3] - corners[0], corners[1] - corners[0]
    wanted = corners[0] + at[:, None, None] * down + at[None, :, None] * right
    error = np.abs(positions(crop) - wanted - moved)
    assert error.mean() < 0.8, "intermediate pixels are quantised to 8 bits"
    assert error.max() < 2.5
    np.testing.assert_allclose(crop[..., 2], 50 / 127.5 - 1, atol=1e-6)


def test_ffhq_crop_beyond_the_image_is_mirrored_and_faded():
    image = np.full((200, 200, 3), 200, np.uint8)
    image[:, :100] = 40  # the left half is dark
    image[120:, 100:] = 90
    points = FACE + np.array([60, 80])
    corners = align.ffhq_quad(points)
    assert corners.max() > 220
    size = 162  # crop pixels equal photo pixels
    crop = (align_ffhq(image, points, size) + 1) * 127.5
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


def test_a_face_partly_outside_and_larger_than_the_image():
    image = ramp(60, 40)
    crop = align_ffhq(image, FACE - np.array([60, 50]), 32)
    assert np.isfinite(crop).all()
    assert crop.shape == (32, 32, 3)


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.zeros((5, 3)), np.zeros(10)])
@pytest.mark.parametrize("function", [align.align_arcface, align_ffhq])
def test_wrong_point_shapes_are_rejected(function, points):
    with pytest.raises(ValueError, match=r"points must be \[5, 2\], not \["):
        function(ramp(8, 8), points, 8)


def test_coinciding_points_are_rejected():
    with pytest.raises(ValueError, match="do not form a face"):
        align_ffhq(ramp(8, 8), np.ones((5, 2)), 8)


# EG3D ---------------------------------------------------------------------------------


def test_eg3d_quad_matches_the_published_steps():
    """Resizes to 300 pixels per unit, cuts out 1024 pixels and, of those, 700."""
    at = Pose(0.3, -0.1, 0)  # upright, so that nothing is turned
    points = project(at) * [60, -60] + [200, 150]
    terms = np.c_[MEAN_FACE, np.ones(5)]
    fits = [np.linalg.lstsq(terms, points[:, axis], rcond=None)[0] for axis in (0, 1)]
    unit = (np.linalg.norm(fits[0][:3]) + np.linalg.norm(fits[1][:3])) / 2
    scale = 300 / unit
    centre = np.array([fits[0][3], fits[1][3]]) * scale
    low = centre - 512 + (1024 - 700) / 2
    quad = align.eg3d_quad(points) * scale
    wanted = low + np.array([[0, 0], [0, 700], [700, 700], [700, 0]])
    np.testing.assert_allclose(quad, wanted, atol=0.01)


def test_eg3d_crop_of_a_frontal_face():
    points = project(Pose(0, 0, 0)) * [60, -60] + [200, 150]
    # Perspective moves the five points by a few hundredths.
    wanted = np.array([[130, 80], [130, 220], [270, 220], [270, 80]])
    np.testing.assert_allclose(align.eg3d_quad(points), wanted, atol=4)
    np.testing.assert_allclose(np.mean(align.eg3d_quad(points), 0)[0], 200, atol=1e-6)


@pytest.mark.parametrize("degrees", [-35, 10, 160])
def test_eg3d_crop_turns_with_the_face(degrees):
    points = project(Pose(0.3, -0.1, 0)) * [60, -60] + [200, 150]
    upright = align.eg3d_quad(points)
    moved = turned(points, degrees, 1.3)
    angle = np.deg2rad(degrees)
    matrix = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = points.mean(0)
    wanted = (upright - middle) @ np.transpose(matrix) * 1.3 + middle
    np.testing.assert_allclose(align.eg3d_quad(moved), wanted, atol=0.01)


def test_eg3d_crop_is_mirrored_with_the_face():
    rng = np.random.default_rng(0)
    points = project(Pose(0.3, -0.1, 0.2)) * [60, -60] + rng.normal(0, 2, (5, 2))
    mirrored = align.eg3d_quad((points * [-1, 1])[[1, 0, 2, 4, 3]])
    quad = align.eg3d_quad(points)
    np.testing.assert_allclose(mirrored * [-1, 1], quad[[3, 2, 1, 0]], atol=0.01)


@pytest.mark.parametrize(
    ("degrees", "refused"), [(58, False), (-58, False), (63, True)]
)
def test_faces_in_profile_are_refused(degrees, refused):
    points = project(Pose(np.deg2rad(degrees), 0, 0)) * [60, -60] + [200, 150]
    if refused:
        with pytest.raises(ValueError, match=r"turned by 63 degrees, .* most 60"):
            align.eg3d_quad(points)
    else:
        align.eg3d_quad(points)


# Photos -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mtcnn():
    return red_faces.RedMTCNN()


@pytest.fixture
def save(tmp_path):
    """Returns a function that writes an image with red squares and returns its path."""

    def save(height, width, *squares, quarters=0, **options):
        path = tmp_path / "photo.png"
        image = np.rot90(red_faces.picture(height, width, *squares), quarters)
        Image.fromarray(image).save(path, **options)
        return path

    return save


def check_red_square(photo, size):
    """Checks that the square is where FFHQ's crop places it."""
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
def test_the_face_is_aligned_as_in_ffhq(save, mtcnn, size):
    path = save(300, 400, (170, 110, 60))
    photo, note = align.prepare_photo(path, mtcnn, size, "ffhq")
    check_red_square(photo, size)
    assert note.startswith(f"{path}: the face, in columns 15")
    assert "\n" not in note


def test_the_largest_of_several_faces_is_used_and_noted(save, mtcnn):
    path = save(300, 400, (40, 120, 40), (200, 110, 70))
    photo, note = align.prepare_photo(str(path), mtcnn, 64, "ffhq")
    check_red_square(photo, 64)
    assert note.startswith(f"{path}: the largest of 2 faces, in columns ")


def test_exif_orientation_is_applied(save, mtcnn):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    path = save(300, 400, (130, 60, 60), quarters=1, exif=exif)
    photo, note = align.prepare_photo(path, mtcnn, 64, "ffhq")
    check_red_square(photo, 64)
    # The column refers to the rotated image.
    assert any(f"columns {left} " in note for left in range(110, 122))
    assert "turned by" not in note


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_photo_is_turned_back_and_noted(save, mtcnn, quarters):
    upright, _ = align.prepare_photo(save(300, 400, (130, 60, 60)), mtcnn, 64, "ffhq")
    path = save(300, 400, (130, 60, 60), quarters=quarters)
    photo, note = align.prepare_photo(path, mtcnn, 64, "ffhq")
    np.testing.assert_array_equal(photo, upright)
    degrees = 90 * quarters
    assert note.startswith(f"{path}: turned by {degrees} degrees clockwise; the face, ")
    # A photo that only needs turning is then used as it is.
    path = save(200, 200, (50, 66, 100), quarters=quarters)
    _, note = align.prepare_photo(path, mtcnn, 64, "ffhq")
    assert note.startswith(
        f"{path}: turned by {degrees} degrees clockwise; the face is"
    )
    assert note.endswith("already aligned as in FFHQ; photo used as it is")


def test_an_aligned_photo_is_used_as_it_is(save, mtcnn):
    path = save(200, 200, (50, 66, 100))
    photo, note = align.prepare_photo(path, mtcnn, 64, "ffhq")
    np.testing.assert_array_equal(photo, photos.load_photo(path, 64))
    assert note == (
        f"{path}: the face is already aligned as in FFHQ; photo used as it is"
    )


@pytest.mark.parametrize("side", [162, 324])
def test_a_photo_is_aligned_if_its_corners_are_within_a_twentieth(side):
    # FACE's crop is then the whole photo, see the published formula above.
    points = (FACE - np.array([9, -16.5])) * side / 162 - 0.5
    image = np.zeros((side, side, 3), np.uint8)
    for direction in ([1, 0], [0, -1], [-1, 1]):
        for moved, aligned in ((0, True), (0.045, True), (0.055, False), (0.1, False)):
            shift = moved * side * np.array(direction)
            assert (
                align.is_aligned(image, align.ffhq_quad(points + shift)) == aligned
            ), moved
    # A larger face moves all corners.
    middle = align.ffhq_quad(points).mean(0)
    for scale, aligned in ((1.08, True), (1.12, False), (0.92, True), (0.88, False)):
        larger = (points - middle) * scale + middle
        assert align.is_aligned(image, align.ffhq_quad(larger)) == aligned, scale


def test_the_face_is_aligned_as_for_eg3d(save, mtcnn):
    """The crop is where the formula puts it for the points that the detector gives."""
    path = save(300, 400, (170, 110, 60))
    points = red_faces.POINTS * 60 + [200 - 0.5, 140 - 0.5]
    quad = align.eg3d_quad(points)
    left, top = quad.min(0)
    photo, note = align.prepare_photo(path, mtcnn, 128, "eg3d")
    red = (photo[0, ..., 0] - photo[0, ..., 1]) / 2 > 0.5
    y, x = np.nonzero(red)
    unit = np.ptp(quad[:, 0]) / 128  # photo pixels per crop pixel
    assert np.sqrt(red.sum()) * unit == pytest.approx(60, abs=3)
    assert left + (x.mean() + 0.5) * unit == pytest.approx(199.5, abs=2)
    assert top + (y.mean() + 0.5) * unit == pytest.approx(139.5, abs=2)
    assert note.startswith(f"{path}: the face, in columns 15")
    assert note.endswith("was aligned as in EG3D")


def test_a_profile_is_reported_in_one_line(save, mtcnn, monkeypatch):
    path = save(300, 400, (170, 110, 60))
    turned_away = project(Pose(-1.3, 0, 0)) * [60, -60] + [200, 140]
    found = align.detect_upright

    def profile(*args):
        upright = found(*args)
        faces = [face._replace(points=turned_away) for face in upright.faces]
        return upright._replace(faces=faces)

    monkeypatch.setattr(align, "detect_upright", profile)
    text = error_message(path, mtcnn, "eg3d")
    assert text == (
        f"{path}: the face can't be cropped (it is turned by 74 degrees, where at most"
        " 60 are possible; use a more frontal photo)"
    )


def test_align_none_equals_load_photo_and_needs_no_detector(save):
    path = save(150, 240, (20, 20, 60))
    photo, note = align.prepare_photo(path, None, 64, "none")
    np.testing.assert_array_equal(photo, photos.load_photo(path, 64))
    assert note == ""


def error_message(path, mtcnn, alignment="ffhq"):
    """Returns the message of the error, which must be one line."""
    with pytest.raises(InputError) as caught:
        align.prepare_photo(path, mtcnn, 64, alignment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unusable_photos_are_rejected_in_one_line(save, mtcnn, tmp_path):
    path = save(100, 100)
    text = error_message(path, mtcnn)
    assert text.startswith(f"{path}: no face found; use a frontal photo")
    text = error_message(path, None)
    assert text.startswith(f"{path}: aligning photos requires a face detector")
    assert "no such photo" in error_message(tmp_path / "none.jpg", mtcnn)
    text = error_message(path, mtcnn, "eyes")
    assert text == "unknown alignment 'eyes'; use 'none' or 'ffhq' or 'eg3d'"
    image = red_faces.picture(200, 200, (60, 60, 60))
    image[..., 2] = 100 * (image[..., 0] == 100)  # no telling its upper end
    Image.fromarray(image).save(path)
    text = error_message(path, mtcnn)
    assert text.startswith(f"{path}: cannot tell which way up the face is (two ways")
    path = save(100, 100, (40, 40, 19))
    text = error_message(path, mtcnn)
    assert text.startswith(f"{path}: the face is too small (2")
    assert "minimum 32" in text
