"""Drawn instances of an image, with ties, empty masks and copies, and the dense arithmetic to compare with."""

import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

SIZE = (7, 9)


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def decode(rle):
    return coco_mask.decode(rle).astype(bool)


def instances(most=8):
    """`(boxes, scores, class_ids, masks)`: blocks with holes; scores of a few values; box and mask fit together."""
    side = st.integers(0, 6)
    one = st.tuples(
        side,
        side,
        side,
        side,
        st.integers(0, 2**12),
        st.sampled_from([0.1, 0.4, 0.5, 0.9]),
        st.integers(1, 3),
    )
    return st.lists(one, max_size=most).map(_build)


def _build(rows):
    boxes, scores, class_ids, masks = [], [], [], []
    for y, x, h, w, holes, score, class_id in rows:
        mask = np.zeros(SIZE, bool)
        mask[y : y + h, x : x + w] = True
        if holes % 3 == 0:
            mask &= np.random.default_rng(holes).random(SIZE) < 0.8
        boxes.append([y, x, min(y + h, SIZE[0]), min(x + w, SIZE[1])])
        scores.append(score)
        class_ids.append(class_id)
        masks.append(mask)
    dense = np.array(masks).reshape(-1, *SIZE)
    return np.array(boxes, float).reshape(-1, 4), np.array(scores), np.array(class_ids, int), dense


def dense_iou(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 0.0


def plain_box_iou(a, b):
    h, w = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if h <= 0 or w <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return h * w / (areas[0] + areas[1] - h * w)


def rank(boxes, scores, class_ids, masks):
    """The documented order: score, then class, box and code."""
    return sorted(
        range(len(scores)),
        key=lambda i: (-scores[i], class_ids[i], list(boxes[i]), encode(masks[i])["counts"]),
    )
