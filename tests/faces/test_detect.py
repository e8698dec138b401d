import numpy as np
import pytest
import red_faces

from guide_jax.faces import detect, photos


@pytest.fixture(scope="module")
def mtcnn():
    return red_faces.RedMTCNN()


def check(face, x, y, side):
    """Checks the face detected in a red square whose top left corner is (x, y)."""
    middle = np.array([x, y]) + (side - 1) / 2
    np.testing.assert_allclose(face.points, middle + side * red_faces.POINTS, atol=2)
    half = red_faces.BOX_SIDE / 2 * side
    box = [*(middle - half), *(middle + half)]
    np.testing.assert_allclose(face.box, box, atol=2 + side / 20)
    assert face.side == pytest.approx(red_faces.BOX_SIDE * side, abs=1 + side / 20)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_all_faces_are_found_largest_first(mtcnn, kind):
    squares = [(250, 130, 33), (90, 60, 60), (40, 200, 90)]
    image = red_faces.picture(360, 333, *squares)
    if kind == "float":
        image = image / 127.5 - 1
    faces = detect.detect(mtcnn, image)
    assert len(faces) == 3
    for face, square in zip(faces, reversed(squares), strict=True):
        check(face, *square)
        assert 0 <= face.score <= 1


def test_a_face_at_the_edge_is_found(mtcnn):
    image = red_faces.picture(120, 150, (147 - 60, 3, 60))
    (face,) = detect.detect(mtcnn, image)
    assert face.box[1] < 0
    assert face.box[2] > 150


@pytest.mark.parametrize("size", [(200, 200), (11, 300), (19, 19), (1, 1)])
def test_images_without_faces_give_an_empty_list(mtcnn, size):
    assert detect.detect(mtcnn, red_faces.picture(*size)) == []


def test_thresholds_and_min_face_filter_faces(mtcnn):
    image = red_faces.picture(100, 100, (30, 30, 30))
    assert len(detect.detect(mtcnn, image)) == 1
    assert detect.detect(mtcnn, image, min_face=90) == []
    for thresholds in [(1.1, 0, 0), (0, 1.1, 0), (0, 0, 1.1)]:
        assert detect.detect(mtcnn, image, thresholds=thresholds) == []


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (1, 8, 8, 3)])
def test_wrong_image_shapes_are_rejected(mtcnn, shape):
    with pytest.raises(ValueError, match=r"must be \[H, W, 3\], not \[.*8"):
        detect.detect(mtcnn, np.zeros(shape, np.uint8))


def test_scales_range_from_the_smallest_to_the_largest_face():
    found = list(detect.scales(480, 640, 20, 0.709))
    assert found[0] == 12 / 20
    np.testing.assert_allclose(np.divide(found[1:], found[:-1]), 0.709)
    assert 480 * found[-1] >= 12 > 480 * found[-1] * 0.709


def test_pyramid_levels_are_padded_to_few_sizes():
    sizes = [detect.bucket(side) for side in range(1, 1025)]
    assert all(side <= size for side, size in enumerate(sizes, 1))
    assert all(size <= max(12, 1.5 * side) for side, size in enumerate(sizes, 1))
    assert set(sizes) == {
        12,
        16,
        24,
        32,
        48,
        64,
        96,
        128,
        192,
        256,
        384,
        512,
        768,
        1024,
    }


def area_mean(part, height, width):
    """Resizes to [height, width, 3] as PyTorch's "area" mode, written as loops."""
    rows, columns = part.shape[:2]
    cell = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            cell[i, j] = part[top:bottom, left:right].mean((0, 1))
    return cell


@pytest.mark.parametrize("size", [(7, 5), (24, 24), (53, 71), (100, 90)])
def test_resizing_averages_over_areas(size):
    image = np.random.default_rng(0).integers(0, 256, (53, 71, 3)).astype(np.uint8)
    photo = image / 127.5 - 1
    sums = detect.Sums(image)
    np.testing.assert_allclose(sums.resize(*size), area_mean(photo, *size), atol=1e-6)
    boxes = np.array([[0, 0, 71, 53], [10, 20, 11, 50], [60, 3, 71, 9]])
    crops = sums.crops(boxes, *size)
    for (left, top, right, bottom), crop in zip(boxes, crops, strict=True):
        part = photo[top:bottom, left:right]
        np.testing.assert_allclose(crop, area_mean(part, *size), atol=1e-6)
    np.testing.assert_allclose(detect.Sums(photo).crops(boxes, *size), crops, atol=1e-6)
    assert crops.dtype == np.float32
    np.testing.assert_array_equal(photos.to_uint8(sums.resize(53, 71)), image)


def test_overlapping_boxes_with_lower_scores_are_dropped():
    boxes = np.array(
        [
            [0, 0, 10, 10, 0.5],
            [0, 0, 10, 9, 0.9],  # covers 0.9 of the first box
            [0, 6, 10, 16, 0.6],  # overlaps the first by a quarter of their union
            [0, 0, 3, 3, 0.7],  # inside the first box
        ]
    )
    np.testing.assert_array_equal(detect.suppress(boxes, 0.5), [1, 3, 2])
    np.testing.assert_array_equal(detect.suppress(boxes, 0.95), [1, 3, 2, 0])
    np.testing.assert_array_equal(detect.suppress(boxes, 0.15), [1, 3])
    np.testing.assert_array_equal(detect.suppress(boxes, 0.5, smaller=True), [1, 2])
    assert detect.suppress(np.zeros((0, 5)), 0.5).shape == (0,)


def test_boxes_become_squares_about_their_centre():
    boxes = np.array([[0, 10, 4, 20, 0.5], [5, 5, 9, 7, 0.1]])
    wanted = [[-3, 10, 7, 20, 0.5], [5, 4, 9, 8, 0.1]]
    np.testing.assert_allclose(detect.squared(boxes), wanted)
