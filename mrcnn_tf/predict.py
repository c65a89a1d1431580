"""`mrcnn predict`: pictures of what a model finds in files, folders, globs and videos."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mrcnn_tf import visualize
from mrcnn_tf.data.images import read_image
from mrcnn_tf.models.mask_rcnn import MaskRCNN

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def predict_paths(model: MaskRCNN, paths: Sequence[str], out: str | Path, *, score: float = 0.5) -> list[str]:
    """Draws detections into copies of the pictures and lists them in `out/predictions.json`.

    Args:
        model: the model.
        paths: image and video files, folders (their images and videos, not those of subfolders), glob patterns.
        out: folder for the results. Pictures keep their names, as PNG; videos become MP4.
        score: detections from this score on.

    Returns:
        One line for each file that could not be read; these are printed as well. The other files are done.

    Raises:
        FileNotFoundError: a path that does not exist, or a pattern or folder with nothing in it.
    """
    files = expand(paths)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = output_names(files)
    entries: list[dict[str, Any]] = []
    failed: list[str] = []
    first = 1  # COCO wants a number for each image: these count pictures and frames
    for file in tqdm(files, unit="file", dynamic_ncols=True):
        try:
            if file.suffix.lower() in VIDEOS:
                rows = predict_video(model, file, folder / f"{names[file]}.mp4", score, first)
            else:
                rows = predict_image(model, file, folder / f"{names[file]}.png", score, first)
        except (ValueError, OSError) as error:
            failed.append(str(error))
            tqdm.write(f"error: {error}", file=sys.stderr)
            continue
        entries += rows
        first = rows[-1]["image_id"] + 1 if rows else first + 1
    aside = folder / "predictions.partial"
    aside.write_text(json.dumps(entries))
    os.replace(aside, folder / "predictions.json")
    print(
        f"{len(files) - len(failed)} of {len(files)} files done, {len(entries)} detections from score {score} on; "
        f"pictures and predictions.json are in {folder}"
    )
    return failed


def predict_image(
    model: MaskRCNN, file: Path, target: Path, score: float, number: int
) -> list[dict[str, Any]]:
    """Draws one picture; returns its COCO results with this image id, each with the file's name."""
    image = read_image(file)
    found = model.detect(image, score_threshold=np.nextafter(np.float32(score), np.float32(-1)))
    visualize.save(target, visualize.draw(image, found))
    return [{**row, "file_name": str(file)} for row in found.to_coco(number)]


def predict_video(
    model: MaskRCNN, file: Path, target: Path, score: float, first: int
) -> list[dict[str, Any]]:
    """Draws every frame of a video; returns COCO results, each with the file's name and the frame's number.

    Image ids count the frames from `first` on, frame numbers from 0.
    """
    rows: list[dict[str, Any]] = []
    video = cv2.VideoCapture(str(file))
    writer = None
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
        for number, frame in enumerate(
            tqdm(frames(video), total=total, desc=file.name, unit="frame", leave=False)
        ):
            found = model.detect(frame, score_threshold=np.nextafter(np.float32(score), np.float32(-1)))
            picture = visualize.draw(frame, found, size=max(frame.shape[:2]))
            if writer is None:
                size = picture.shape[1], picture.shape[0]
                writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise OSError(f"{target}: OpenCV cannot write this video; is the folder writable?")
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            rows += [
                {**row, "file_name": str(file), "frame": number} for row in found.to_coco(first + number)
            ]
    finally:
        video.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise ValueError(f"{file}: OpenCV finds no frame in this video; is it complete?")
    return rows


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames, uint8 `[H, W, 3]` RGB."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def expand(paths: Sequence[str]) -> list[Path]:
    """The files that paths, folders and patterns name, without repetition."""
    files: dict[Path, None] = {}
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES + VIDEOS)
            if not found:
                raise FileNotFoundError(f"{path}: no images or videos in this folder")
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
            if not found:
                raise FileNotFoundError(f"{text}: no such file, folder or pattern")
        files.update(dict.fromkeys(found))
    return list(files)


def output_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file's result: its own, or with a number where two would be the same."""
    taken: dict[str, int] = {}
    names = {}
    for file in files:
        count = taken.get(file.stem, 0)
        taken[file.stem] = count + 1
        names[file] = file.stem if not count else f"{file.stem}_{count + 1}"
    return names
