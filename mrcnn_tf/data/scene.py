"""Drawing one image of huddled shapes.

A huddle is a group of shapes of one class, alike in colour, texture, size and direction, that touch and cover
each other: what makes non-maximum suppression and box-shaped features fail on real crowds. How a shape looks
tells its class only in part: every class has a favourite texture and hue, which half of its huddles have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

SHAPE_CLASSES = ("disc", "ellipse", "square", "triangle", "star", "cross")

_MIN_VISIBLE = 0.3  # no shape is covered so far that less of it is left
_MIN_INSIDE = 0.7  # nor does less of it lie in the image
_GAP = 3.0  # pixels between shapes that are to lie apart


@dataclass(frozen=True)
class _Huddle:
    """What the shapes of a huddle have in common."""

    kind: int
    radius: float
    angle: float
    colour: NDArray[np.float32]
    texture: Callable[..., NDArray[np.float32]]
    rim: float


@dataclass(frozen=True)
class _Shape:
    """A placed shape: its window on the image, and there the signed distance (pixels, positive inside)."""

    huddle: _Huddle
    centre: tuple[float, float]
    radius: float
    angle: float
    window: tuple[slice, slice]
    distance: NDArray[np.float64]


def draw_scene(
    rng: np.random.Generator, size: int, crowding: float
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Draw one image.

    Returns:
        The image, uint8 `[size, size, 3]`, and for each shape a dict of `category_id`, `bbox`, `area` and
        `segmentation` as in COCO.
    """
    image = _background(rng, size)
    shapes, labels = _place(rng, size, crowding, image.reshape(-1, 3).mean(axis=0))
    for shape in shapes:
        _paint(image, shape, rng)
    image[:] = cv2.GaussianBlur(image, (3, 3), 0.6)
    image *= _field(rng, size, 2, 0.85, 1.1)[..., None]  # uneven light
    image += rng.integers(-5, 6, image.shape, np.int8)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), _annotate(shapes, labels)


def _place(
    rng: np.random.Generator, size: int, crowding: float, backdrop: NDArray[np.float32]
) -> tuple[list[_Shape], NDArray[np.int32]]:
    """Choose shapes; later ones cover earlier ones. Labels are 1 + index of the visible shape."""
    labels = np.zeros((size, size), np.int32)
    shapes: list[_Shape] = []
    areas = [1.0]
    wanted = int(round(rng.uniform(4, 6) + crowding * rng.uniform(3, 6)))
    while len(shapes) < wanted:
        huddle = _huddle(rng, size, backdrop)
        members: list[_Shape] = []
        for _ in range(min(1 + rng.binomial(5, 0.65 * crowding), wanted - len(shapes))):
            apart = not members and rng.random() >= 0.5 * crowding
            shape = _fit(rng, huddle, members, labels, areas, crowding, apart)
            if shape is None:
                break
            members.append(shape)
            shapes.append(shape)
            inside = shape.distance > 0
            areas.append(float(np.count_nonzero(inside)))
            labels[shape.window][inside] = len(shapes)
        if not members:  # the image is full
            break
    return shapes, labels


def _fit(
    rng: np.random.Generator,
    huddle: _Huddle,
    members: list[_Shape],
    labels: NDArray[np.int32],
    areas: list[float],
    crowding: float,
    apart: bool,
) -> _Shape | None:
    """A place for one more shape of the huddle, or None after some attempts."""
    size = len(labels)
    for _ in range(20):
        radius = huddle.radius * rng.uniform(0.87, 1.13)
        angle = huddle.angle + rng.normal(0, 0.2)
        if members:
            neighbour = members[rng.integers(len(members))]
            # Up to a crowding of 0.5 neighbours touch, beyond it they lie on top of each other.
            near = 0.5 * max(crowding - 0.5, 0)
            spacing = rng.uniform(1 - 0.55 * crowding - near, 1 - 0.2 * crowding - near)
            reach = (neighbour.radius + radius) * spacing
            towards = rng.uniform(0, 2 * np.pi)
            y = neighbour.centre[0] + reach * np.sin(towards)
            x = neighbour.centre[1] + reach * np.cos(towards)
        else:
            y, x = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        shape = _shape(huddle, y, x, radius, angle, size)
        inside = shape.distance > 0
        area = np.count_nonzero(inside)
        if area < _MIN_INSIDE * _AREAS[huddle.kind] * radius**2:
            continue
        under = labels[shape.window]
        if apart and under[shape.distance > -_GAP].any():
            continue
        covered = np.bincount(under[inside], minlength=len(areas))
        touched = np.flatnonzero(covered[1:]) + 1
        if all(np.count_nonzero(labels == i) - covered[i] >= _MIN_VISIBLE * areas[i] for i in touched):
            return shape
    return None


def _huddle(rng: np.random.Generator, size: int, backdrop: NDArray[np.float32]) -> _Huddle:
    kind = int(rng.integers(len(SHAPE_CLASSES)))
    texture = kind if rng.random() < 0.5 else int(rng.integers(len(SHAPE_CLASSES)))
    for _ in range(8):
        favourite = kind / len(SHAPE_CLASSES) + rng.normal(0, 0.04)
        hue = favourite if rng.random() < 0.5 else rng.random()
        colour = _rgb(hue, rng.uniform(0.35, 0.9), rng.uniform(0.4, 0.95))
        if np.linalg.norm(colour - backdrop) > 80:
            break
    return _Huddle(
        kind=kind,
        radius=size * rng.uniform(0.085, 0.15),
        angle=rng.uniform(0, 2 * np.pi),
        colour=colour,
        texture=_texture(rng, texture),
        rim=rng.uniform(0.25, 0.5),
    )


def _shape(huddle: _Huddle, y: float, x: float, radius: float, angle: float, size: int) -> _Shape:
    reach = radius + _GAP + 1
    top, bottom = (int(v) for v in np.clip([y - reach, y + reach + 1], 0, size))
    left, right = (int(v) for v in np.clip([x - reach, x + reach + 1], 0, size))
    window = slice(top, bottom), slice(left, right)
    u, v = _local(window, (y, x), angle)
    distance = _DISTANCES[huddle.kind](u / radius, v / radius) * radius
    return _Shape(huddle, (y, x), radius, angle, window, distance)


def _local(
    window: tuple[slice, slice], centre: tuple[float, float], angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of the window's pixel centres in the frame of a shape, in pixels."""
    dy = np.arange(window[0].start, window[0].stop)[:, None] + 0.5 - centre[0]
    dx = np.arange(window[1].start, window[1].stop)[None, :] + 0.5 - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    return c * dx + s * dy, c * dy - s * dx


# Outlines of the polygonal shapes in units of the radius, and each shape's signed distance. At concave
# corners and for the ellipse it is an approximation; only the sign and the neighbourhood of zero count.

_HALF = 0.76  # half side of the square
_ARM = 0.32  # half width of the cross's arms
_TENTHS = np.pi / 5 * np.arange(10)
_NOTCH = 0.45  # distance of the star's inner corners from its centre


def _triangle(u: NDArray, v: NDArray) -> NDArray:
    return 0.5 - np.maximum(-u, 0.5 * u + np.sqrt(0.75) * np.abs(v))


def _star(u: NDArray, v: NDArray) -> NDArray:
    # Fold the plane onto half of one ray; the edge from tip to notch is then one line.
    turn = 2 * np.pi / 5
    angle, radius = np.arctan2(v, u), np.hypot(u, v)
    angle = np.abs(angle - turn * np.round(angle / turn))
    (y1, x1), (y2, x2) = (0.0, 1.0), (_NOTCH * np.sin(turn / 2), _NOTCH * np.cos(turn / 2))
    normal = np.array([x1 - x2, y2 - y1]) / np.hypot(x1 - x2, y2 - y1)
    return -(normal[0] * (radius * np.sin(angle) - y1) + normal[1] * (radius * np.cos(angle) - x1))


def _cross(u: NDArray, v: NDArray) -> NDArray:
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.minimum(0.95 - long, _ARM - short)


def _ellipse(u: NDArray, v: NDArray) -> NDArray:
    scaled = np.hypot(u, v / 0.42)
    return (1 - scaled) * scaled / np.maximum(np.hypot(u, v / 0.42**2), 1e-6)


_DISTANCES: tuple[Callable[[NDArray, NDArray], NDArray], ...] = (
    lambda u, v: 0.85 - np.hypot(u, v),
    _ellipse,
    lambda u, v: _HALF - np.maximum(np.abs(u), np.abs(v)),
    _triangle,
    _star,
    _cross,
)
_OUTLINES: dict[int, list[tuple[float, float]]] = {
    2: [(_HALF, _HALF), (-_HALF, _HALF), (-_HALF, -_HALF), (_HALF, -_HALF)],
    3: [(np.cos(a), np.sin(a)) for a in np.pi * np.array([0, 2 / 3, 4 / 3])],
    4: [((1, _NOTCH)[i % 2] * np.cos(a), (1, _NOTCH)[i % 2] * np.sin(a)) for i, a in enumerate(_TENTHS)],
    5: [
        (c * x - s * y, s * x + c * y)
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for x, y in ((0.95, _ARM), (_ARM, _ARM), (_ARM, 0.95))
    ],
}


def _areas() -> list[float]:
    """Area of every shape of radius 1."""
    areas = [0.85**2 * np.pi, 0.42 * np.pi]
    for kind in range(2, len(SHAPE_CLASSES)):
        x, y = np.array(_OUTLINES[kind]).T
        areas.append(0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    return areas


_AREAS = _areas()


def _paint(image: NDArray[np.float32], shape: _Shape, rng: np.random.Generator) -> None:
    """Draw a shape over what is there: colour, texture, a darker rim, a soft edge."""
    huddle, window = shape.huddle, shape.window
    distance = shape.distance.astype(np.float32)
    u, v = _local(window, shape.centre, shape.angle)
    light = 1 + huddle.texture(u, v) - huddle.rim * np.exp(-np.maximum(distance, 0) / 1.5)
    light *= rng.uniform(0.9, 1.1)
    colour = huddle.colour + rng.normal(0, 5, 3)
    alpha = np.clip(distance + 0.5, 0, 1)[..., None]
    image[window] += alpha * (light[..., None] * colour - image[window])


def _texture(rng: np.random.Generator, kind: int) -> Callable[..., NDArray[np.float32]]:
    """A brightness pattern in a shape's own frame: a function of two coordinates in pixels."""
    depth, wave = rng.uniform(0.1, 0.2), 2 * np.pi / rng.uniform(4, 8)
    a, b = rng.uniform(0, 2 * np.pi, 2)
    patterns = (
        lambda u, v: 0.04 * depth * (np.cos(a) * u + np.sin(a) * v),
        lambda u, v: depth * np.sin(wave * u + a),
        lambda u, v: depth * np.sign(np.sin(wave * u + a) * np.sin(wave * v + b)),
        lambda u, v: depth * np.sin(wave * np.hypot(u, v) + a),
        lambda u, v: 0.7 * depth * (np.sin(wave * u + a) + np.sin(wave * v + b)),
        lambda u, v: (
            0.6 * depth * (np.sin(wave * (u + 0.6 * v) + a) + np.sin(1.7 * wave * (v - 0.4 * u) + b))
        ),
    )
    return patterns[kind]


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A mottled, striped or plain ground of two colours, with thin lines across."""
    first = _rgb(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.15, 0.95))
    second = np.clip(first + rng.normal(0, 30, 3), 0, 255)
    ground = rng.integers(3)
    if ground == 0:
        share = _field(rng, size, int(rng.integers(3, 7)), 0, 1)
    elif ground == 1:
        share = _field(rng, size, int(rng.integers(12, 33)), 0, 1)
    else:
        at, angle = np.arange(size), rng.uniform(0, np.pi)
        phase = np.cos(angle) * at[:, None] + np.sin(angle) * at[None, :]
        share = 0.5 + 0.5 * np.sin(phase * (2 * np.pi / rng.uniform(6, 24)))
        share = 0.7 * share + 0.3 * _field(rng, size, 8, 0, 1)
    image = (first + share[..., None] * (second - first)).astype(np.float32)
    for _ in range(rng.integers(4)):
        (x1, y1, x2, y2), shade = rng.integers(0, size, 4), rng.uniform(0.6, 1.3)
        colour = tuple(float(c) for c in np.clip(shade * first, 0, 255))
        cv2.line(image, (int(x1), int(y1)), (int(x2), int(y2)), colour, int(rng.integers(1, 3)))
    return image


def _field(rng: np.random.Generator, size: int, cells: int, low: float, high: float) -> NDArray[np.float32]:
    """Smooth noise in [low, high]."""
    grid = rng.uniform(low, high, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR), np.float32)


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    """HSV, each in [0, 1] (hue on a circle), to RGB in [0, 255]."""
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return (255 * value * (1 - saturation + saturation * wheel)).astype(np.float32)


def _annotate(shapes: list[_Shape], labels: NDArray[np.int32]) -> list[dict[str, Any]]:
    """COCO's view of what is visible of each shape."""
    rows = []
    layers = np.asfortranarray(labels[..., None] == np.arange(1, len(shapes) + 1)).astype(np.uint8, order="F")
    for shape, rle in zip(shapes, coco_mask.encode(layers), strict=True):
        area = int(coco_mask.area(rle))
        segmentation: Any = {"size": rle["size"], "counts": rle["counts"].decode()}
        if shape.huddle.kind in _OUTLINES and area == np.count_nonzero(shape.distance > 0):
            corners = _corners(shape)
            if corners.min() >= 0 and corners.max() <= len(labels):  # neither covered nor cut off
                segmentation = [corners.round(2).reshape(-1).tolist()]
        rows.append(
            {
                "category_id": shape.huddle.kind + 1,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": area,
                "segmentation": segmentation,
            }
        )
    return rows


def _corners(shape: _Shape) -> NDArray[np.float64]:
    """The corners of a polygonal shape, `[n, 2]`, x and y."""
    c, s = np.cos(shape.angle), np.sin(shape.angle)
    turned = np.array(_OUTLINES[shape.huddle.kind]) @ np.array([[c, s], [-s, c]])
    return shape.radius * turned + shape.centre[::-1]
