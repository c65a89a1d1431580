"""COCO's 80 classes, whose ids run to 90 with gaps."""

from __future__ import annotations

# fmt: off
NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
]
# fmt: on
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)

IDS = [number for number in range(1, 91) if number not in GAPS]
COCO_80 = dict(zip(IDS, NAMES, strict=True))
# Models with a class for each id have these gaps as classes that nothing was ever trained to be.
COCO_90 = {number: COCO_80.get(number, f"unused {number}") for number in range(1, 91)}


def coco_classes(count: int) -> dict[int, str] | None:
    """Id and name of each class of a COCO model with 80 or 90 classes, in its order; None for another count."""
    return {80: COCO_80, 90: COCO_90}.get(count)
