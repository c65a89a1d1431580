"""Does an exported folder do what the model does? Seen from a process that has neither this package nor Keras."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf.data.images import read_image
from mrcnn_tf.data.scene import draw_scene
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.models.mask_rcnn import MaskRCNN

ALONE = Path(__file__).with_name("alone.py")
DAMAGED = ("truncated.jpg", "text.png")


class ExportError(ValueError):
    """What was exported does not do what the model does."""


def check_folder(model: MaskRCNN, folder: Path, *, exact: bool = True) -> None:
    """Loads a SavedModel with TensorFlow's session loader in a fresh process, and compares it with `model.detect`.

    Drawn images of several sizes go through every signature, one by one, in a batch, and beside damaged files. A file
    alone must give the model's boxes to 0.01 pixel, scores to 1e-5 and masks to a level of 255; two in a hundred
    detections may be others, since a rounding decides where two scores or overlaps are all but equal.

    Args:
        model: what was exported.
        folder: of the version.
        exact: false where model or folder compute in 16 bits: most confident detections must be found again.

    Raises:
        ExportError: what does not fit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = make_files(Path(scratch), min(model.min_size, 480))
        expected = {
            name: model.detect(read_image(path)) for name, path in files.items() if name not in DAMAGED
        }
        data = {name: np.frombuffer(path.read_bytes(), np.uint8) for name, path in files.items()}
        first, batches = next(iter(expected)), {name: [name] for name in expected}
        batches["damaged"] = [first, *DAMAGED, first]
        batches["mixed"] = list(expected)
        calls: dict[str, np.ndarray] = {}
        for batch, names in batches.items():
            for signature in ("serving_default", "compact"):
                call = f"{signature}/{batch}"
                calls |= {f"{call}/image_bytes/{row}": data[name] for row, name in enumerate(names)}
                if signature == "compact":
                    own = np.full(len(names), -1, np.float32)
                    calls |= {f"{call}/score_threshold": own, f"{call}/iou_threshold": own}
        batches["pixels"] = [first, first]
        calls["image/pixels/images"] = np.stack([read_image(files[first])] * 2)
        out = run_alone(folder, calls, Path(scratch))

    custom = [name for name in out["operations"] if name.startswith(("Mrcnn", "PyFunc", "EagerPyFunc"))]
    if custom:
        raise ExportError(f"the graph holds operations that no stock server has: {', '.join(custom)}")
    for call in sorted({name.rsplit("/", 1)[0] for name in out if "/" in name}):
        _, batch = call.split("/")
        outputs = {
            name.rsplit("/", 1)[1]: value for name, value in out.items() if name.startswith(f"{call}/")
        }
        pairs = []
        for row, name in enumerate(batches[batch]):
            got = detections_of(outputs, row)
            status = outputs["status"][row].decode()
            if (status == "ok") != (name in expected) or (name in DAMAGED and len(got)):
                raise ExportError(f"{call}: {name} has the status {status!r} and {len(got)} detections")
            if name in expected:
                if got.image_size != expected[name].image_size:
                    raise ExportError(f"{call}: {name} has the size {got.image_size}")
                pairs.append((expected[name], got))
        # Images of several sizes share a larger canvas and see it at their borders, which may change any detection.
        if batch != "mixed":
            compare(call, pairs, exact)


def make_files(folder: Path, size: int) -> dict[str, Path]:
    """Drawn pictures as files: square, tall, and wide by its EXIF orientation; and two that are damaged."""
    image = draw_scene(np.random.default_rng(0), max(size, 64), 0.5)[0]
    tall = Image.fromarray(np.ascontiguousarray(image[:, : 3 * len(image) // 4]))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(image).save(folder / "square.png")
    tall.save(folder / "tall.jpg", quality=95)
    tall.save(folder / "turned.jpg", quality=95, exif=turned.tobytes())
    whole = io.BytesIO()
    tall.save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.png").write_bytes(b"not an image")
    return {name: folder / name for name in ("square.png", "tall.jpg", "turned.jpg", *DAMAGED)}


def run_alone(folder: Path, calls: dict[str, np.ndarray], scratch: Path) -> dict[str, Any]:
    """What `alone.py` gives for these calls."""
    inputs, outputs = scratch / "inputs.npz", scratch / "outputs.npz"
    np.savez(inputs, **calls)  # type: ignore[arg-type]
    # That process has a folder of its own, lest it finds this package in ours.
    command = [sys.executable, str(ALONE), str(folder.resolve()), str(inputs), str(outputs)]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(f"TensorFlow cannot run it without this package:\n{done.stderr[-2000:]}")
    with np.load(outputs, allow_pickle=True) as made:
        return dict(made)


def detections_of(outputs: dict[str, np.ndarray], row: int) -> Detections:
    """A row of a signature's outputs, all arrays, as the model's own result."""
    count = int(outputs["num_detections"][row])
    if "detection_masks_bytes" in outputs:
        flat = [np.frombuffer(mask, np.uint8) for mask in outputs["detection_masks_bytes"][row, :count]]
        side = int(np.sqrt(len(flat[0]))) if flat else 1
        masks = np.reshape(flat, (count, side, side))
    else:
        masks = outputs["detection_masks"][row, :count]
    return Detections(
        image_size=tuple(outputs["image_size"][row]),
        boxes=outputs["detection_boxes"][row, :count],
        scores=outputs["detection_scores"][row, :count],
        class_ids=outputs["detection_classes"][row, :count],
        category_ids=outputs["detection_category_ids"][row, :count],
        class_names=[name.decode() for name in outputs["detection_class_names"][row, :count]],
        masks=masks / np.float32(255),
    )


def compare(call: str, pairs: list[tuple[Detections, Detections]], exact: bool) -> None:
    """Raises ExportError unless the second of each pair is like the first; see `check_folder`."""
    wanted = missing = 0
    for expected, got in pairs:
        expected = expected if exact else expected.filter(0.5)
        wanted += len(expected)
        if not len(got):
            missing += len(expected)
            continue
        near = got.class_ids == expected.class_ids[:, None]
        if exact:
            near &= np.abs(got.boxes - expected.boxes[:, None]).max(-1) <= 0.01
            near &= np.abs(got.scores - expected.scores[:, None]) <= 1e-5
            shape = (len(expected), len(got), -1)
            masks, own = np.asarray(got.masks), np.asarray(expected.masks)
            near &= np.abs(masks - own[:, None]).reshape(shape).max(-1) <= 1.01 / 255
        else:
            corner = [np.concatenate([d.boxes[:, 1::-1], d.boxes[:, :1:-1]], 1) for d in (expected, got)]
            sized = [np.concatenate([c[:, :2], c[:, 2:] - c[:, :2]], 1).astype(float) for c in corner]
            near &= np.reshape(coco_mask.iou(*sized, [0] * len(got)), near.shape) >= 0.7
        missing += int((~near.any(1)).sum())
    # There may be few confident ones in drawn pictures. AP is what tells how good 16 bits are; this is for mistakes.
    if missing > (0.02 if exact else 0.5) * wanted:
        raise ExportError(
            f"{call}: {missing} of the model's {wanted} detections are not among the exported one's"
        )
