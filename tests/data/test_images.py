"""Image files of every kind arrive as uint8 RGB of the annotated size, or as one line that names the file."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from mrcnn_tf.data.images import read_image

# Left half red, upper right quarter blue, on black: every rotation and mirroring looks different.
PICTURE = np.zeros((16, 32, 3), np.uint8)
PICTURE[:, :16] = (255, 0, 0)
PICTURE[:8, 16:] = (0, 0, 255)


def save(path, image):
    assert cv2.imwrite(str(path), image)
    return path


def with_orientation(path, orientation):
    """A JPEG of PICTURE with an EXIF orientation, written by hand."""
    _, code = cv2.imencode(".jpg", PICTURE[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    data = code.tobytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    return path


def alike(image, expected):
    return image.shape == expected.shape and np.abs(image.astype(int) - expected).mean() < 8


def test_rgb_order(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", PICTURE[..., ::-1])), PICTURE)


def test_grey(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", grey)), np.dstack([grey] * 3))


def test_alpha_is_dropped(tmp_path):
    alpha = np.full((16, 32, 1), 7, np.uint8)
    path = save(tmp_path / "a.png", np.concatenate([PICTURE[..., ::-1], alpha], axis=2))
    np.testing.assert_array_equal(read_image(path), PICTURE)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "L"])
def test_other_modes(tmp_path, mode):
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 257, 32896, 65535], [0, 1, 128, 255]),  # 16 bits used
        ([0, 16, 2048, 4095], [0, 1, 128, 255]),  # a microscope's 12 bits
    ],
)
def test_sixteen_bits(tmp_path, values, expected):
    path = save(tmp_path / "a.png", np.array([values], np.uint16))
    np.testing.assert_array_equal(read_image(path)[0, :, 1], expected)


@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (6, np.rot90(PICTURE, -1)),
        (8, np.rot90(PICTURE, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    path = with_orientation(tmp_path / "a.jpg", orientation)
    assert alike(read_image(path), upright)
    assert alike(read_image(path, upright.shape[:2]), upright)


def test_exif_orientation_is_not_applied_where_the_annotations_are_of_the_stored_image(tmp_path):
    path = with_orientation(tmp_path / "a.jpg", 6)
    assert alike(read_image(path, (16, 32)), PICTURE)


def broken(path, part):
    suffix = path.suffix
    _, code = cv2.imencode(suffix, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(code.tobytes()[: int(len(code) * part)])
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_broken_off_files_are_named(tmp_path, suffix, part):
    path = broken(tmp_path / f"a{suffix}", part)
    with pytest.raises(ValueError, match=r"a\.(jpg|png): not a whole, readable image") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_a_whole_jpeg_with_a_tail_is_read(tmp_path):
    path = broken(tmp_path / "a.jpg", 1)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert read_image(path).shape == (64, 64, 3)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such image file"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "dir.jpg").mkdir()
    with pytest.raises(ValueError, match=r"dir\.jpg: cannot be read"):
        read_image(tmp_path / "dir.jpg")


def test_size_mismatch_names_both(tmp_path):
    path = save(tmp_path / "a.png", PICTURE)
    with pytest.raises(ValueError, match=r"a\.png: is 16 high and 32 wide.* say 16 and 31"):
        read_image(path, (16, 31))


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tiff", np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"a\.tiff: pixels of type float32"):
        read_image(path)
