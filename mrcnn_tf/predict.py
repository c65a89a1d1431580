"""`mrcnn predict`: pictures of what a model finds in files, folders, globs and videos.

The main thread runs the network; other threads decode what comes next, and draw and write what was found.
"""

from __future__ import annotations

import glob
import itertools
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mrcnn_tf import visualize
from mrcnn_tf.data.images import read_image
from mrcnn_tf.files import save_json
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.models.mask_rcnn import MaskRCNN
from mrcnn_tf.tiling import detect_tiled, tiles_of

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
WORKERS = 4
# So many pictures are decoded before the network is ready for them, and so many are being written behind it. With the
# one in the network, and the images that wait for the end of a video, at most 3 * AHEAD + 1 are in memory.
AHEAD = 4
# Longer side in pixels to which the drawn copies of tiled pictures are reduced: drawing takes 15 bytes a pixel.
LARGEST = 4096

T = TypeVar("T")
Rows = list[dict[str, Any]]
Jobs = Generator[tuple[str, "Future[Rows]"], None, None]


def predict_paths(
    model: MaskRCNN,
    paths: Sequence[str],
    out: str | Path,
    *,
    score: float = 0.5,
    tile: int | None = None,
    overlap: int | None = None,
) -> list[str]:
    """Draws detections into copies of the pictures and lists them in `out/predictions.json`.

    An interrupt leaves what was detected until then: whole pictures, the videos' first frames, and the list of both.

    Args:
        model: the model.
        paths: image and video files, folders (their images and videos, not those of subfolders), glob patterns.
        out: folder for the results. Pictures keep their names, as PNG; videos become MP4.
        score: detections from this score on.
        tile: detect tile by tile (see `detect_tiled`), one picture at a time instead of several, and draw pictures at
            no more than `LARGEST` pixels.
        overlap: of the tiles.

    Returns:
        One line for each file that could not be read; these are printed as well. The other files are done.

    Raises:
        FileNotFoundError: a path that does not exist, or a pattern or folder with nothing in it.
        ValueError: a tile and an overlap that `detect_tiled` refuses, or an overlap without a tile.
    """
    if tile is not None:
        tiles_of(1, 1, tile, overlap)
    elif overlap is not None:
        raise ValueError("an overlap is one of tiles: give their size, too")
    files = expand(paths)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    entries: Rows = []
    failed: list[str] = []
    count: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    pending: deque[tuple[str, Future[Rows]]] = deque()
    model.detect(np.zeros((1, 64, 3), np.uint8))  # builds the graph, which is no part of the speed
    clock = time.perf_counter()

    def settle() -> None:
        """Takes the rows of the oldest job: they get the files' order."""
        nonlocal clock
        kind, job = pending[0]
        wait([job])  # an interrupt here leaves the job in its place
        pending.popleft()
        try:
            entries.extend(job.result())
            count[kind] += 1
        except (ValueError, OSError) as error:
            failed.append(str(error))
            tqdm.write(f"error: {error}", file=sys.stderr)
        clock, before = time.perf_counter(), clock
        seconds[kind] += clock - before

    try:
        with (
            ThreadPoolExecutor(WORKERS) as pool,
            closing(predict_files(model, files, folder, score, pool, tile, overlap)) as jobs,
        ):
            for job in jobs:
                pending.append(job)
                if len(pending) > places(tile):
                    settle()
    finally:
        while pending:
            settle()
        save_json(folder / "predictions.json", entries)
        speed = [
            f", {count[kind] / seconds[kind]:.1f} {kind}/s" for kind in ("images", "frames") if count[kind]
        ]
        print(
            f"{count['images'] + count['videos']} of {len(files)} files done, "
            f"{len(entries)} detections from score {score} on{''.join(speed)}; "
            f"pictures and predictions.json are in {folder}"
        )
    return failed


def predict_files(
    model: MaskRCNN,
    files: Sequence[Path],
    folder: Path,
    score: float,
    pool: ThreadPoolExecutor,
    tile: int | None,
    overlap: int | None,
) -> Jobs:
    """Detects on file after file.

    Yields:
        For each image `"images"`, for each frame of a video `"frames"`, at its end `"videos"`; and the COCO results
        that there will be once the picture is written, or the error. Image ids count pictures and frames.
    """
    names = output_names(files)
    numbers = itertools.count(1)
    reads = ahead((None if is_video(file) else pool.submit(read_image, file) for file in files), places(tile))
    for file, read in zip(tqdm(files, unit="file", dynamic_ncols=True), reads, strict=True):
        if read is None:
            try:
                target = folder / f"{names[file]}.mp4"
                yield from predict_video(model, file, target, score, numbers, pool, tile, overlap)
                yield "videos", ended([])
            except (ValueError, OSError) as error:
                yield "videos", ended(error)
        elif (failure := read.exception()) is not None:
            yield "images", ended(failure)
        else:
            image, target = read.result(), folder / f"{names[file]}.png"
            found = detect(model, image, score, tile, overlap)
            size = LARGEST if tile and max(image.shape) > LARGEST else None
            yield "images", pool.submit(write_image, file, target, image, found, next(numbers), size)


def predict_video(
    model: MaskRCNN,
    file: Path,
    target: Path,
    score: float,
    numbers: Iterator[int],
    pool: ThreadPoolExecutor,
    tile: int | None,
    overlap: int | None,
) -> Jobs:
    """Detects on frame after frame; yields what `predict_files` does for each.

    Raises:
        ValueError: the video has no frames.
        OSError: the target cannot be written.
    """
    video = cv2.VideoCapture(str(file))
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    writer = written = None
    try:
        bar = tqdm(frames(video), total=total, desc=file.name, unit="frame", leave=False)
        for index, frame in enumerate(bar):
            if writer is None:
                size = frame.shape[1], frame.shape[0]
                writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise OSError(f"{target}: OpenCV cannot write this video; is the folder writable?")
            found = detect(model, frame, score, tile, overlap)
            written = pool.submit(write_frame, file, writer, frame, found, next(numbers), index, written)
            yield "frames", written
    finally:
        if written is not None:
            wait([written])
        if writer is not None:
            writer.release()
    if writer is None:
        raise ValueError(f"{file}: OpenCV finds no frame in this video; is it complete?")


def detect(
    model: MaskRCNN,
    image: NDArray[np.uint8],
    score: float,
    tile: int | None = None,
    overlap: int | None = None,
) -> Detections:
    """The detections from this score on."""
    below = float(np.nextafter(np.float32(score), np.float32(-1)))
    if tile is None:
        return model.detect(image, score_threshold=below)
    return detect_tiled(model, image, tile=tile, overlap=overlap, score_threshold=below, bar="tiles")


def write_image(
    file: Path,
    target: Path,
    image: NDArray[np.uint8],
    found: Detections,
    number: int,
    size: int | None = None,
) -> Rows:
    """Draws one picture (see `draw` for its size); returns its COCO results, with this image id and the file's name."""
    visualize.save(target, visualize.draw(image, found, size=size))
    return [{**row, "file_name": str(file)} for row in found.to_coco(number)]


def write_frame(
    file: Path,
    writer: cv2.VideoWriter,
    frame: NDArray[np.uint8],
    found: Detections,
    number: int,
    index: int,
    before: Future[Rows] | None,
) -> Rows:
    """Draws one frame and, once the one `before` is written, writes it; returns what `write_image` does and `index`."""
    picture = visualize.draw(frame, found, size=max(frame.shape[:2]))
    rows = [{**row, "file_name": str(file), "frame": index} for row in found.to_coco(number)]
    if before is not None:
        before.result()
    writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return rows


def frames(video: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    """The frames, uint8 `[H, W, 3]` RGB."""

    def read() -> NDArray[np.uint8] | None:
        there, frame = video.read()
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8) if there else None

    with ThreadPoolExecutor(1) as reader:  # one thread: frames come in order
        for made in ahead(reader.submit(read) for _ in itertools.count()):
            frame = made.result()
            if frame is None:
                return
            yield frame


def ended(outcome: Rows | BaseException) -> Future[Rows]:
    """A job that has come to its end."""
    job: Future[Rows] = Future()
    if isinstance(outcome, BaseException):
        job.set_exception(outcome)
    else:
        job.set_result(outcome)
    return job


def places(tile: int | None) -> int:
    """How many pictures wait on either side of the network: none if they are so large that they are tiled."""
    return AHEAD if tile is None else 0


def ahead(items: Iterable[T], places: int = AHEAD) -> Iterator[T]:
    """The items, each taken from where they come so many places before its turn."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > places:
            yield waiting.popleft()
    yield from waiting


def is_video(file: Path) -> bool:
    """By its name."""
    return file.suffix.lower() in VIDEOS


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
