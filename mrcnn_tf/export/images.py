"""Image files to pixels inside a graph, with stock operations, as `mrcnn_tf.data.images.read_image` reads them.

A file that cannot be used gives a reason instead of an error: it must not fail the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

MAX_PIXELS = 100_000_000  # a small file can claim any size: decoding it would take all memory
# A file's first bytes, in which the EXIF orientation is looked for: cameras write it at the start, behind a preview of
# at most 64 KiB.
HEAD = 1 << 18


def decode(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One file, upright and RGB.

    Args:
        data: scalar string, a JPEG or PNG file. Grey, palette, CMYK and RGBA images become RGB, alpha is dropped,
            16 bits become 8, and the EXIF orientation is applied.

    Returns:
        uint8 `[h, w, 3]`, of size `[0, 0, 3]` if the file cannot be used; and a scalar string, `"ok"` or the reason.
    """
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    head = tf.io.decode_raw(tf.strings.substr(data, 0, HEAD), tf.uint8)
    # Zeros behind the end: nothing that is read from there needs a check of its own.
    head = tf.cast(tf.pad(head, [[0, 64]]), tf.int32)

    size = tf.case(
        [
            (is_jpeg, lambda: _or_empty(lambda: tf.io.extract_jpeg_shape(data)[:2], [0])),
            (is_png, lambda: tf.stack([_number(head, 20, 4), _number(head, 16, 4)])),
        ],
        default=lambda: tf.zeros([0], tf.int32),
    )
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    readable = (tf.size(size) == 2) & tf.reduce_all(size > 0) & (pixels <= MAX_PIXELS)

    def read() -> tf.Tensor:
        image = _or_empty(lambda: _decode_whole(data, head, is_png), [0, 0, 3])
        return upright(image, orientation(head, is_png))

    image = tf.cond(readable, read, lambda: tf.zeros([0, 0, 3], tf.uint8))
    image = tf.ensure_shape(image, [None, None, 3])
    reason = tf.case(
        [
            (tf.strings.length(data) == 0, lambda: tf.constant("empty: no bytes of an image")),
            (~(is_jpeg | is_png), lambda: tf.constant("neither a JPEG nor a PNG file")),
            (
                pixels > MAX_PIXELS,
                lambda: tf.strings.format("{} pixels, more than the {} allowed", (pixels, MAX_PIXELS)),
            ),
            (tf.size(image) == 0, lambda: tf.constant("damaged or incomplete image file")),
        ],
        default=lambda: tf.constant("ok"),
    )
    return image, reason


def _or_empty(make: Callable[[], tf.Tensor], shape: list[int]) -> tf.Tensor:
    """What `make` returns, or an empty tensor of `shape` and the same type where an operation in it fails."""
    # `ignore_errors` of a data set is the only stock operation that survives another's failure.
    one = tf.data.Dataset.from_tensors(0)
    made = one.map(lambda _: make()).ignore_errors()
    empty = one.map(lambda _: tf.zeros(shape, made.element_spec.dtype))
    return made.concatenate(empty).take(1).get_single_element()  # a tenth of the time that `reduce` takes


def _decode_whole(data: tf.Tensor, head: tf.Tensor, is_png: tf.Tensor) -> tf.Tensor:
    deep = is_png & (head[24] == 16)

    def from_16_bits() -> tf.Tensor:
        image = tf.cast(tf.io.decode_png(data, channels=3, dtype=tf.uint16), tf.float64)
        # Microscopes write 12 bits into 16.
        scale = tf.where(tf.reduce_max(image) < 4096.0, tf.constant(255 / 4095, tf.float64), 255 / 65535)
        return tf.cast(tf.floor(image * scale + 0.5), tf.uint8)

    def from_8_bits() -> tf.Tensor:
        # TensorFlow's default method is up to 19 levels off what every other decoder gives. Reads PNG files, too.
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")

    return tf.cond(deep, from_16_bits, from_8_bits)


def orientation(head: tf.Tensor, is_png: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation, a scalar 1..8, from a file's first bytes, int32 `[n]`; 1 where there is none."""
    start = tf.cond(is_png, lambda: _find_in_png(head), lambda: _find_in_jpeg(head))
    little = _at(head, start) == ord("I")
    first = start + _number(head, start + 4, 4, little)
    entries = first + 2 + 12 * tf.range(tf.clip_by_value(_number(head, first, 2, little), 0, 512))
    values = _number(head, entries + 8, 2, little)
    found = tf.boolean_mask(values, _number(head, entries, 2, little) == 0x0112)
    value = tf.concat([found, [1]], 0)[0]
    return tf.where((start > 0) & (value >= 1) & (value <= 8), value, 1)


def upright(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """`[h, w, 3]` as it is to be looked at, from how it lies in the file (EXIF's tag Orientation)."""

    def among(*turns: int) -> tf.Tensor:
        return tf.reduce_any(turn == tf.constant(turns))

    image = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)


def _find_in_jpeg(head: tf.Tensor) -> tf.Tensor:
    """Where the TIFF header of the EXIF segment begins, or 0."""

    def is_exif(at: tf.Tensor) -> tf.Tensor:
        name = tf.gather(head, tf.minimum(at + 4 + tf.range(6), tf.size(head) - 1))
        return (_number(head, at, 2) == 0xFFE1) & tf.reduce_all(name == list(b"Exif\0\0"))

    def goes_on(at: tf.Tensor) -> tf.Tensor:
        # Segments up to the first scan.
        return (_at(head, at) == 0xFF) & (_at(head, at + 1) != 0xDA) & ~is_exif(at)

    (at,) = tf.while_loop(goes_on, lambda at: (at + 2 + _number(head, at + 2, 2),), (tf.constant(2),))
    return tf.where(is_exif(at), at + 10, 0)


def _find_in_png(head: tf.Tensor) -> tf.Tensor:
    """Where the TIFF header of the eXIf chunk begins, or 0."""
    exif, pixels = (int.from_bytes(name, "big") for name in (b"eXIf", b"IDAT"))

    def goes_on(at: tf.Tensor) -> tf.Tensor:
        name = _number(head, at + 4, 4)
        return (name != exif) & (name != pixels) & (at + 12 < tf.size(head))

    (at,) = tf.while_loop(
        goes_on, lambda at: (at + 12 + tf.maximum(_number(head, at, 4), 0),), (tf.constant(8),)
    )
    return tf.where(_number(head, at + 4, 4) == exif, at + 8, 0)


def _at(head: tf.Tensor, index: tf.Tensor | int) -> tf.Tensor:
    """The bytes at these places; zero outside."""
    return tf.gather(head, tf.clip_by_value(index, 0, tf.size(head) - 1))


def _number(
    head: tf.Tensor, index: tf.Tensor | int, count: int, little: tf.Tensor | bool = False
) -> tf.Tensor:
    """Whole numbers of `count` bytes that begin at these places; those of 2^31 and more come out negative."""
    value = tf.zeros_like(index)
    for i in range(count):
        place = 8 * tf.where(little, i, count - 1 - i)
        value += tf.bitwise.left_shift(_at(head, index + i), place)
    return value
