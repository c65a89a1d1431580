"""Files decoded in a graph are what `read_image` reads; what it refuses has a reason."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.data.images import read_image
from mrcnn_tf.export import images

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (10, 14, 3), np.uint8), (70, 50), interpolation=cv2.INTER_CUBIC)
DEEP = RNG.integers(0, 65536, (30, 20, 3)).astype(np.uint16)


@pytest.fixture(scope="module")
def decode():
    graph = tf.function(images.decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)

    def run(data: bytes) -> tuple[np.ndarray, str]:
        image, status = graph(tf.constant(data))
        return image.numpy(), status.numpy().decode()

    return run


def encoded(picture, form: str, **settings) -> bytes:
    out = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(out, form, **settings)
    return out.getvalue()


def exif(orientation: int, endian: str) -> bytes:
    tags = Image.Exif()
    tags.endian = endian
    tags[0x0110], tags[0x0112] = "a model, which moves the tag", orientation
    return tags.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(decode, tmp_path, form, orientation):
    for endian in "<>":
        data = encoded(PICTURE, form, exif=exif(orientation, endian))
        (tmp_path / "file").write_bytes(data)
        image, status = decode(data)
        np.testing.assert_array_equal(image, read_image(tmp_path / "file"))
        assert status == "ok" and image.shape == ((70, 50, 3) if orientation > 4 else (50, 70, 3))


def test_orientation_by_hand(decode):
    """Orientation 6: the first row of the file is the right column of the picture."""
    image, _ = decode(encoded(np.array([[[10] * 3, [20] * 3]], np.uint8), "PNG", exif=exif(6, "<")))
    assert image[..., 0].tolist() == [[10], [20]]
    image, _ = decode(
        encoded(np.array([[[10] * 3, [20] * 3], [[30] * 3, [40] * 3]], np.uint8), "PNG", exif=exif(6, "<"))
    )
    assert image[..., 0].tolist() == [[30, 10], [40, 20]]


@pytest.mark.parametrize(
    "data",
    [
        encoded(PICTURE, "JPEG", quality=90),
        encoded(PICTURE, "JPEG", progressive=True),
        encoded(PICTURE, "JPEG", subsampling=0),
        encoded(PICTURE, "JPEG", icc_profile=b"x" * 100000, exif=exif(8, ">")),
        encoded(PICTURE[..., 0], "JPEG"),
        encoded(PICTURE, "PNG"),
        encoded(PICTURE[..., 0], "PNG"),
        encoded(PICTURE[..., 0] > 99, "PNG"),
        encoded(Image.fromarray(PICTURE).convert("P"), "PNG"),
        encoded(np.dstack([PICTURE, PICTURE[..., :1]]), "PNG"),
        cv2.imencode(".png", DEEP)[1].tobytes(),
        cv2.imencode(".png", DEEP // 16)[1].tobytes(),
        cv2.imencode(".png", DEEP[..., 0])[1].tobytes(),
    ],
    ids=[
        *("jpeg", "progressive", "444", "icc", "grey"),
        *("png", "grey-png", "bits", "palette", "rgba", "16", "12", "grey-16"),
    ],
)
def test_kinds_of_files(decode, tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    image, status = decode(data)
    np.testing.assert_array_equal(image, read_image(tmp_path / "file"))
    assert status == "ok"


def test_cmyk(decode, tmp_path):
    """To a level: OpenCV and TensorFlow convert with other roundings."""
    data = encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")
    (tmp_path / "file").write_bytes(data)
    assert np.abs(decode(data)[0].astype(int) - read_image(tmp_path / "file")).max() <= 1


JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")


def changed(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "neither"),
        (encoded(PICTURE, "GIF"), "neither"),
        (encoded(PICTURE, "WEBP"), "neither"),
        *((JPEG[:cut], "damaged") for cut in (3, 10, 100, len(JPEG) // 2, len(JPEG) - 1)),
        *((PNG[:cut], "damaged") for cut in (8, 20, 30, len(PNG) // 2, len(PNG) - 12)),
        (changed(PNG, 16, b"\xff" * 8), "damaged"),
        (changed(PNG, 16, (60000).to_bytes(4, "big") * 2), "3600000000 pixels, more than the 100000000"),
    ],
)
def test_what_cannot_be_used_has_a_reason(decode, data, reason):
    image, status = decode(data)
    assert image.shape == (0, 0, 3) and status.startswith(reason)


@pytest.mark.parametrize("whole", [JPEG, PNG, encoded(PICTURE, "JPEG", exif=exif(6, ">"))])
def test_no_file_raises(decode, whole):
    """Whatever a few bytes become, there is an image or a reason."""
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for at in RNG.integers(0, len(data), 5):
            data[at] = RNG.integers(256)
        image, status = decode(bytes(data))
        assert (status == "ok") == (image.size > 0) and image.ndim == 3
        refused += status != "ok"
    assert refused


def test_photographs(decode, data_dir):
    for path in sorted((data_dir / "coco_mini" / "val2017").glob("*.jpg"))[:20]:
        np.testing.assert_array_equal(decode(path.read_bytes())[0], read_image(path))
