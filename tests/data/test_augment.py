"""Augmentation: boxes and masks go where the pixels go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.data.augment import (
    View,
    colour_jitter,
    fit_size,
    jittered_view,
    view_image,
    view_instances,
    whole_view,
)
from mrcnn_tf.data.coco import CocoDataset
from mrcnn_tf.data.scene import draw_scene
from mrcnn_tf.layers.preprocess import SIZE_RULES, resized_shape
from tests.data.helpers import annotation, coco, dense, rectangle, rle

RNG = np.random.default_rng


def instances_of(rows, height, width):
    return CocoDataset(coco([(1, height, width)], rows), None).instances(0)


def seen(view, instances, height, width, mask_size=28, max_instances=20):
    return view_instances(
        view, instances, height, width, mask_size=mask_size, max_instances=max_instances, rng=RNG(0)
    )


def scene(seed, compressed=True):
    """A generated image, its dense masks, and its instances with the masks as RLE or all as polygons."""
    image, rows = draw_scene(RNG([11, seed]), 128, 0.6)
    masks = [dense(row["segmentation"], 128, 128) for row in rows]
    whole = [
        {"id": i, "image_id": 1, "category_id": row["category_id"], "segmentation": rle(mask, compressed)}
        for i, (row, mask) in enumerate(zip(rows, masks, strict=True))
    ]
    categories = [(i, str(i)) for i in range(1, 7)]
    return image, masks, CocoDataset(coco([(1, 128, 128)], whole, categories), None).instances(0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 1000),
    st.integers(1, 1500),
    st.sampled_from(SIZE_RULES),
)
def test_fit_size_is_the_models_rule(height, width, min_size, max_size, rule):
    assert fit_size(height, width, min_size, max_size, rule) == tuple(
        resized_shape(height, width, min_size, max_size, rule).numpy()
    )


@pytest.mark.parametrize(
    "height, width, size",
    [(480, 640, (800, 1067)), (640, 480, (1067, 800)), (300, 1000, (400, 1333)), (100, 100, (800, 800))],
)
def test_whole_view(height, width, size):
    view = whole_view(height, width, min_size=800, max_size=1333, canvas=(1344, 1344))
    assert view == View((0, 0, height, width), size)


def test_whole_view_fits_the_canvas():
    view = whole_view(640, 480, min_size=800, max_size=1333, canvas=(800, 1344))
    assert view.size == (800, 600)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(60, 700), st.integers(60, 700), st.integers(0, 10**6), st.sampled_from([(64, 64), (96, 160)])
)
def test_jittered_view_is_inside_image_and_canvas_and_keeps_the_shape_of_things(height, width, seed, canvas):
    view = jittered_view(RNG(seed), height, width, canvas=canvas, scale=(0.1, 2.0))
    y1, x1, y2, x2 = view.window
    assert 0 <= y1 < y2 <= height
    assert 0 <= x1 < x2 <= width
    assert 1 <= view.size[0] <= canvas[0]
    assert 1 <= view.size[1] <= canvas[1]
    # A pixel of the window may be rounded off on each axis.
    ratio_y, ratio_x = view.size[0] / (y2 - y1), view.size[1] / (x2 - x1)
    slack = 1 / (y2 - y1) + 1 / (x2 - x1) + 1 / view.size[0] + 1 / view.size[1]
    assert abs(np.log(ratio_y / ratio_x)) <= np.log1p(slack)


def test_jitter_spans_its_range():
    sizes = [jittered_view(RNG(i), 100, 200, canvas=(100, 200), scale=(0.5, 2.0)).size for i in range(200)]
    windows = [
        jittered_view(RNG(i), 100, 200, canvas=(100, 200), scale=(0.5, 2.0)).window for i in range(200)
    ]
    assert 50 <= min(h for h, _ in sizes) < 55
    assert max(h for h, _ in sizes) == 100  # enlarged images are cropped to the canvas
    assert 50 <= min(y2 - y1 for y1, _, y2, _ in windows) < 55
    assert len({x1 for _, x1, _, _ in windows}) > 20


def test_flips_by_hand():
    """A 2 x 4 object in a 6 x 10 image, shown twice as large."""
    mask = np.zeros((6, 10), bool)
    mask[1, 2:6] = True
    mask[2, 2] = True
    found = instances_of([annotation(1, 1, (1, 2, 3, 6), segmentation=rle(mask))], 6, 10)
    grid = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    for flip_x, flip_y, box, expected in [
        (False, False, [2, 4, 6, 12], grid),
        (True, False, [2, 8, 6, 16], grid[:, ::-1]),
        (False, True, [6, 4, 10, 12], grid[::-1]),
        (True, True, [6, 8, 10, 16], grid[::-1, ::-1]),
    ]:
        out = seen(View((0, 0, 6, 10), (12, 20), flip_x, flip_y), found, 6, 10, mask_size=4, max_instances=2)
        np.testing.assert_array_equal(out["gt_boxes"], [box, [0, 0, 0, 0]])
        np.testing.assert_array_equal(out["gt_masks"][0], expected)
        assert out["gt_classes"].tolist() == [1, -1]
        assert out["gt_has_mask"].tolist() == [True, False]


def test_crop_by_hand():
    found = instances_of([annotation(1, 1, (2, 2, 8, 8), segmentation=rectangle(2, 2, 8, 5))], 10, 10)
    view = View((4, 4, 10, 10), (12, 12), cropped=True)
    out = seen(view, found, 10, 10, mask_size=4, max_instances=1)
    np.testing.assert_array_equal(out["gt_boxes"], [[0, 0, 8, 8]])
    np.testing.assert_array_equal(out["gt_masks"][0], [[1, 0, 0, 0]] * 4)  # columns 4 to 5 of 4 to 8


def test_flip_twice_is_the_identity():
    image = RNG(0).integers(0, 256, (7, 9, 3), np.uint8)
    for flips in ({"flip_x": True}, {"flip_y": True}, {"flip_x": True, "flip_y": True}):
        view = View((0, 0, 7, 9), (7, 9), **flips)
        assert (view_image(view, image) != image).any()
        np.testing.assert_array_equal(view_image(view, view_image(view, image)), image)


@pytest.mark.parametrize("seed", range(12))
def test_masks_stay_under_their_boxes(seed):
    """Against the dense masks, cropped and flipped as the image is, at the centres of the cells."""
    image, masks, found = scene(seed, compressed=seed % 2 == 0)
    rng = RNG(seed)
    flips = {"flip_x": seed % 2 == 0, "flip_y": seed % 3 == 0}
    if seed % 4 == 3:
        view = whole_view(128, 128, min_size=200, max_size=300, canvas=(256, 256), **flips)
    else:
        view = jittered_view(rng, 128, 128, canvas=(96, 160), scale=(0.7, 2.5), **flips)
    out = seen(view, found, 128, 128, mask_size=56)
    shown = view_image(view, image)
    scale = np.array([*view.size, *view.size]) / np.array([*shown.shape[:2], *shown.shape[:2]])
    count = int((out["gt_classes"] > 0).sum())
    assert count > 0
    # Which of the dense masks each is: the one it overlaps most.
    dense_shown = [view_image(view, np.dstack([mask] * 3).astype(np.uint8))[..., 0] for mask in masks]
    for box, mask in zip(out["gt_boxes"][:count] / scale, out["gt_masks"][:count], strict=True):
        y1, x1, y2, x2 = box
        cells = (np.arange(56) + 0.5) / 56
        rows = np.clip((y1 + cells * (y2 - y1)).astype(int), 0, shown.shape[0] - 1)
        columns = np.clip((x1 + cells * (x2 - x1)).astype(int), 0, shown.shape[1] - 1)
        agreement = [(d[np.ix_(rows, columns)] == mask).mean() for d in dense_shown]
        assert max(agreement) > 0.97
        whole = dense_shown[int(np.argmax(agreement))]
        ys, xs = np.nonzero(whole)
        tight = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
        assert (
            np.array([y1, x1, -y2, -x2]) <= np.array([tight[0], tight[1], -tight[2], -tight[3]]) + 1e-3
        ).all()


def test_polygons_and_rle_give_the_same_masks():
    mask = np.zeros((40, 60), bool)
    mask[5:25, 10:50] = True
    rows = [annotation(1, 1, (5, 10, 25, 50), segmentation=rle(mask))]
    rows.append(annotation(2, 1, (5, 10, 25, 50), segmentation=rectangle(5, 10, 25, 50)))
    found = instances_of(rows, 40, 60)
    for seed in range(5):
        view = jittered_view(RNG(seed), 40, 60, canvas=(64, 64), scale=(1, 2), flip_x=True)
        out = seen(view, found, 40, 60)
        np.testing.assert_array_equal(out["gt_boxes"][0], out["gt_boxes"][1])
        assert (out["gt_masks"][0] != out["gt_masks"][1]).mean() < 0.02


def test_remnants_of_a_crop_are_dropped():
    rows = [
        annotation(1, 1, (0, 0, 50, 50), segmentation=rectangle(0, 0, 50, 50)),  # outside the window
        annotation(2, 1, (40, 40, 61, 80)),  # one row of it is left
        annotation(3, 1, (0, 60, 64, 100)),  # four rows are left, one sixteenth
        annotation(4, 1, (0, 60, 62.5, 100)),  # two and a half, less than a twentieth
        annotation(5, 1, (50, 50, 70, 70), segmentation=rectangle(50, 50, 59, 59)),  # its box only
        annotation(6, 1, (70, 70, 90, 90), segmentation=rectangle(70, 70, 90, 90)),
        annotation(7, 1, (95, 95, 96, 96)),  # whole, but one pixel
    ]
    found = instances_of(rows, 100, 100)
    view = View((60, 60, 100, 100), (40, 40), cropped=True)
    out = seen(view, found, 100, 100)
    np.testing.assert_array_equal(out["gt_boxes"][out["gt_classes"] > 0], [[0, 0, 4, 40], [10, 10, 30, 30]])
    # Without a crop, all of it counts.
    assert (seen(View((0, 0, 100, 100), (40, 40)), found, 100, 100)["gt_classes"] > 0).sum() == 7


def test_too_many_instances_are_chosen_at_random_and_crowd_regions_stay():
    rows = [annotation(i, 1, (i, i, i + 5, i + 5)) for i in range(1, 31)]
    rows[20]["iscrowd"] = 1
    found = instances_of(rows, 100, 100)
    view = View((0, 0, 100, 100), (100, 100))
    chosen = [
        view_instances(view, found, 100, 100, mask_size=4, max_instances=10, rng=RNG(seed))
        for seed in range(20)
    ]
    assert {int((out["gt_classes"] > 0).sum()) for out in chosen} == {10}
    assert all(out["gt_crowd"].sum() == 1 for out in chosen)
    assert {float(y) for out in chosen for y in out["gt_boxes"][:, 0]} == set(range(1, 31))


def test_empty_image():
    out = seen(View((0, 0, 10, 10), (20, 20)), instances_of([], 10, 10), 10, 10, mask_size=4, max_instances=3)
    assert out["gt_classes"].tolist() == [-1, -1, -1]
    assert out["gt_masks"].shape == (3, 4, 4)
    assert not any(out[name].any() for name in ("gt_boxes", "gt_crowd", "gt_has_mask", "gt_masks"))


def test_a_mask_without_a_pixel_is_no_mask():
    rows = [annotation(1, 1, (1, 1, 5, 5), segmentation=rle(np.zeros((10, 10))))]
    out = seen(View((0, 0, 10, 10), (20, 20)), instances_of(rows, 10, 10), 10, 10)
    assert out["gt_classes"][0] == 1
    assert not out["gt_has_mask"][0]


IMAGE = RNG(3).integers(60, 190, (32, 32, 3), np.uint8)


class Fixed:
    """Draws the end of every range."""

    def uniform(self, low, high):
        return high


def test_no_colour_jitter_is_the_identity():
    np.testing.assert_array_equal(colour_jitter(RNG(0), IMAGE, (0, 0, 0, 0)), IMAGE)


def test_brightness_and_contrast():
    brighter = colour_jitter(Fixed(), IMAGE, (0.2, 0, 0, 0))
    np.testing.assert_allclose(brighter, IMAGE * 1.2, atol=0.51)
    stronger = colour_jitter(Fixed(), IMAGE, (0, 0.2, 0, 0)).astype(float)
    mean = (IMAGE.mean(axis=(0, 1)) * [0.299, 0.587, 0.114]).sum()
    np.testing.assert_allclose(stronger, mean + 1.2 * (IMAGE - mean), atol=0.51)


def luminance(image):
    return image.astype(float) @ [0.299, 0.587, 0.114]


def test_saturation_and_hue_keep_the_luminance():
    grey = np.dstack([IMAGE[..., 0]] * 3)
    for strengths in ((0, 0, 0.4, 0), (0, 0, 0, 0.1)):
        jittered = colour_jitter(Fixed(), IMAGE, strengths)
        assert np.abs(jittered.astype(int) - IMAGE).max() > 10
        inside = ((jittered > 0) & (jittered < 255)).all(axis=2)
        np.testing.assert_allclose(luminance(jittered)[inside], luminance(IMAGE)[inside], atol=1.0)
        np.testing.assert_allclose(colour_jitter(Fixed(), grey, strengths).astype(int), grey, atol=1)


def test_hue_turned_by_half_the_circle_gives_complements():
    red = np.full((2, 2, 3), (150, 100, 100), np.uint8)
    turned = colour_jitter(Fixed(), red, (0, 0, 0, 0.5))[0, 0].astype(int)
    assert turned[0] < turned[1]
    assert turned[0] < turned[2]


def test_colour_jitter_is_random_and_repeatable():
    strengths = (0.3, 0.3, 0.3, 0.1)
    a, b, c = (colour_jitter(RNG(seed), IMAGE, strengths) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
