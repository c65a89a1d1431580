"""Pictures are read, detected on and written at the same time, with the results of one after the other."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mrcnn_tf import predict, visualize
from mrcnn_tf.cli import main
from mrcnn_tf.data.images import read_image
from mrcnn_tf.models.detections import Detections
from mrcnn_tf.tiling import detect_tiled
from mrcnn_tf.training import checkpoints
from tests.numbered import Perfect, draw_numbered


class Model:
    """Finds up to three instances, which depend on nothing but the image."""

    def detect(self, image: np.ndarray, score_threshold: float = 0.0) -> Detections:
        rng = np.random.default_rng(int(image.sum()))
        count = int(rng.integers(0, 4))
        corner = rng.uniform(0, 20, (count, 2))
        found = Detections(
            image_size=image.shape[:2],
            boxes=np.concatenate([corner, corner + rng.uniform(5, 20, (count, 2))], 1),
            scores=rng.uniform(0.3, 1, count),
            class_ids=np.ones(count),
            category_ids=np.full(count, 7),
            class_names=["disc"] * count,
            masks=rng.uniform(size=(count, 28, 28)),
        )
        return found.select(found.scores > score_threshold)


def make_image(folder: Path, name: str, seed: int) -> Path:
    cv2.imwrite(str(folder / name), np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8))
    return folder / name


def make_video(folder: Path, name: str, seed: int, count: int) -> Path:
    writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for picture in np.random.default_rng(seed).integers(0, 256, (count, 48, 64, 3), np.uint8):
        writer.write(picture)
    writer.release()
    return folder / name


def frames_of(file: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(file)), []
    while True:
        there, frame = video.read()
        if not there:
            return frames
        frames.append(frame)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Images and videos in turns."""
    folder = tmp_path / "in"
    folder.mkdir()
    return [
        *(make_image(folder, f"a{i:02}.png", i) for i in range(12)),
        make_video(folder, "b.avi", 1, 15),
        make_video(folder, "c.avi", 2, 1),
        *(make_image(folder, f"d{i}.jpg", 20 + i) for i in range(3)),
    ]


def one_after_the_other(files: list[Path], folder: Path, score: float) -> list[dict]:
    """The plain way: writes what is expected and returns the entries of predictions.json."""
    folder.mkdir()
    entries: list[dict] = []
    number = 0

    def found_on(image: np.ndarray, extra: dict) -> Detections:
        nonlocal number
        number += 1
        found = Model().detect(image).filter(score)
        entries.extend({**row, **extra} for row in found.to_coco(number))
        return found

    for file in files:
        if file.suffix == ".avi":
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(folder / f"{file.stem}.mp4"), code, 5, (64, 48))
            for index, frame in enumerate(frames_of(file)):
                frame = frame[..., ::-1].copy()
                found = found_on(frame, {"file_name": str(file), "frame": index})
                writer.write(visualize.draw(frame, found, size=64)[..., ::-1].copy())
            writer.release()
        else:
            image = read_image(file)
            found = found_on(image, {"file_name": str(file)})
            visualize.save(folder / f"{file.stem}.png", visualize.draw(image, found))
    return entries


def contents(folder: Path) -> dict[str, np.ndarray]:
    """Pixels of all pictures and videos."""
    return {
        path.name: np.array(frames_of(path) if path.suffix == ".mp4" else cv2.imread(str(path)))
        for path in folder.iterdir()
        if path.suffix in (".png", ".mp4")
    }


def delayed(function, seed: int):
    """The function with a delay that differs from call to call."""
    rng = np.random.default_rng(seed)

    def call(*arguments, **options):
        time.sleep(rng.uniform(0, 0.01))
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_results_do_not_depend_on_the_timing(files, tmp_path, monkeypatch, capsys, seed):
    expected = one_after_the_other(files, tmp_path / "expected", 0.6)
    if seed is not None:
        for module, name in (
            (predict, "read_image"),
            (visualize, "draw"),
            (visualize, "save"),
            (predict, "detect"),
        ):
            monkeypatch.setattr(module, name, delayed(getattr(module, name), seed))
    out = tmp_path / "out"
    assert predict.predict_paths(Model(), [str(file) for file in files], out, score=0.6) == []
    assert json.loads((out / "predictions.json").read_text()) == expected
    wanted, got = contents(tmp_path / "expected"), contents(out)
    assert set(wanted) == set(got) == {p.name for p in out.iterdir()} - {"predictions.json"}
    for name, pixels in wanted.items():
        np.testing.assert_array_equal(got[name], pixels, err_msg=name)
    line = capsys.readouterr().out
    assert f"17 of 17 files done, {len(expected)} detections from score 0.6 on" in line
    assert re.search(r"[1-9]\d*\.\d images/s, [1-9]\d*\.\d frames/s", line)


def test_few_pictures_are_in_memory(tmp_path, monkeypatch):
    files = [make_video(tmp_path, "a.avi", 1, 30), *(make_image(tmp_path, f"{i}.png", i) for i in range(30))]
    lock, alive, peaks = threading.Lock(), 0, []

    def change(by: int) -> None:
        nonlocal alive
        with lock:
            alive += by
            peaks.append(alive)

    def reading(function):
        return lambda *arguments: (change(1), function(*arguments))[1]

    def writing(function):
        return lambda *arguments: (function(*arguments), time.sleep(0.01), change(-1))[0]

    def open_video(path):
        video = original(path)
        return SimpleNamespace(get=video.get, read=reading(video.read))

    original = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", open_video)
    monkeypatch.setattr(predict, "read_image", reading(predict.read_image))
    for name in ("write_image", "write_frame"):
        monkeypatch.setattr(predict, name, writing(getattr(predict, name)))
    predict.predict_paths(Model(), [str(file) for file in files], tmp_path / "out")
    # Behind the last frame, there are as many attempts to read one as fit in front of the network, and one more.
    assert alive == predict.AHEAD + 1
    assert 2 * predict.AHEAD < max(peaks) <= 3 * predict.AHEAD + 1


def test_large_pictures_are_tiled_one_at_a_time(tmp_path, monkeypatch, capsys):
    """Lists what `detect_tiled` finds, exact masks included, and draws no larger than LARGEST."""
    monkeypatch.setattr(predict, "LARGEST", 200)
    images = [draw_numbered(size, 12, 96, 32, seed=size)[0] for size in (300, 150, 310)]
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, images, strict=True):
        cv2.imwrite(str(file), image[..., ::-1])
    happened: list[str] = []

    def noted(what, function):
        return lambda *arguments: (happened.append(what), function(*arguments))[1]

    for name in ("read_image", "detect", "write_image"):
        monkeypatch.setattr(predict, name, noted(name, getattr(predict, name)))
    out = tmp_path / "out"
    assert (
        predict.predict_paths(Perfect(), [str(f) for f in files], out, score=0.6, tile=96, overlap=32) == []
    )
    assert happened == ["read_image", "detect", "write_image"] * 3
    assert "3 of 3 files done" in capsys.readouterr().out
    expected = []
    for number, (file, image, side) in enumerate(zip(files, images, (200, 640, 200), strict=True), 1):
        found = detect_tiled(Perfect(), image, tile=96, overlap=32, score_threshold=0.59999)
        expected += [{**row, "file_name": str(file)} for row in found.to_coco(number)]
        picture = visualize.draw(image, found, size=side)
        assert picture.shape == (side, side, 3)
        np.testing.assert_array_equal(cv2.imread(str(out / file.name)), picture[..., ::-1])
    assert json.loads((out / "predictions.json").read_text()) == expected


def test_videos_are_tiled(tmp_path):
    video, out = make_video(tmp_path, "v.avi", 0, 3), tmp_path / "out"
    predict.predict_paths(Model(), [str(video)], out, score=0.4, tile=40, overlap=10)
    expected = []
    for index, frame in enumerate(frames_of(video)):
        found = detect_tiled(Model(), frame[..., ::-1].copy(), tile=40, overlap=10, score_threshold=0.39999)
        expected += [{**row, "file_name": str(video), "frame": index} for row in found.to_coco(index + 1)]
    assert json.loads((out / "predictions.json").read_text()) == expected
    assert len(expected) > 3 and len(frames_of(out / "v.mp4")) == 3


def test_bad_tiles_are_refused_at_once(files, tmp_path):
    paths, out = [str(file) for file in files], tmp_path / "out"
    for wrong, message in (
        ({"tile": 16}, "32 pixels or more, not 16"),
        ({"tile": 64, "overlap": 64}, "less than the tile, not 64"),
        ({"overlap": 8}, "give their size, too"),
    ):
        with pytest.raises(ValueError, match=message):
            predict.predict_paths(Model(), paths, out, **wrong)
    assert not out.exists()


def test_the_command_passes_tiles_on(monkeypatch):
    seen = {}

    def noting(model, paths, out, **settings):
        seen.update(settings, model=model, paths=paths, out=out)
        return []

    monkeypatch.setattr(predict, "predict_paths", noting)
    monkeypatch.setattr(checkpoints, "load_model", str.upper)
    command = ["predict", "m", "a.png", "--out", "o"]
    assert main(command) == 0
    assert seen == {"model": "M", "paths": ["a.png"], "out": "o", "score": 0.5, "tile": None, "overlap": None}
    assert main([*command, "--tile", "1024", "--overlap", "128"]) == 0
    assert (seen["tile"], seen["overlap"]) == (1024, 128)


def test_files_that_cannot_be_used(tmp_path, capsys):
    """Named in the order of the files, whoever finds out first; the others are done."""
    files = [make_image(tmp_path, f"{i}.png", i) for i in range(8)]
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[5].write_bytes(b"")
    videos = [make_video(tmp_path, name, 1, 3) for name in ("a.avi", "b.avi", "c.avi")]
    videos[1].write_bytes(b"no video")
    out = tmp_path / "out"
    (out / "3.png").mkdir(parents=True)
    (out / "c.mp4").mkdir()
    files = [*files[:2], *videos, *files[2:]]
    failed = predict.predict_paths(Model(), [str(file) for file in files], out)
    reasons = [
        r"/0\.png: not a whole, readable image",
        r"/b\.avi: OpenCV finds no frame",
        r"/out/c\.mp4: OpenCV cannot write this video",
        r"Is a directory: '.*/out/3\.png'",
        r"/5\.png: not a whole, readable image",
    ]
    assert len(failed) == len(reasons)
    for message, reason in zip(failed, reasons, strict=True):
        assert re.search(reason, message) and "\n" not in message
    said = capsys.readouterr()
    assert "6 of 11 files done" in said.out
    assert re.findall(r"error: [^\r\n]*", said.err) == [f"error: {message}" for message in failed]
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        *(f"{i}.png" for i in (1, 2, 4, 6, 7)),
        "a.mp4",
        "predictions.json",
    }


@pytest.mark.parametrize("where", ["image", "video", "worker"])
def test_interrupt_leaves_what_is_finished(request, files, tmp_path, monkeypatch, capsys, where):
    """Ctrl-C while the network works on the 8th image or on the 6th frame, or while it waits for the writers."""
    # Shells start what runs in the background with Ctrl-C switched off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    expected = one_after_the_other(files, tmp_path / "expected", 0.0)
    detect, save, seen = predict.detect, visualize.save, []

    def interrupted_detect(*arguments):
        seen.append(1)
        if len(seen) == {"image": 8, "video": 12 + 6, "worker": 0}[where]:
            signal.raise_signal(signal.SIGINT)
        return detect(*arguments)

    def interrupting_save(path, picture):
        if path.name == "a02.png" and where == "worker":
            time.sleep(0.2)  # by now the main thread has to wait
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.2)
        save(path, picture)

    monkeypatch.setattr(predict, "detect", interrupted_detect)
    monkeypatch.setattr(visualize, "save", interrupting_save)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict.predict_paths(Model(), [str(file) for file in files], out, score=0.0)
    got = contents(out)
    pictures, frames = {"image": (7, 0), "video": (12, 5), "worker": (len(got), 0)}[where]
    assert pictures >= 3
    assert len(got) == pictures + (frames > 0) and len(got.get("b.mp4", ())) == frames
    for name, pixels in contents(tmp_path / "expected").items():
        np.testing.assert_array_equal(
            got.get(name, pixels), pixels[: frames or None] if "mp4" in name else pixels
        )
    entries = json.loads((out / "predictions.json").read_text())
    assert entries == [row for row in expected if row["image_id"] <= pictures + frames]
    assert f"{pictures} of 17 files done" in capsys.readouterr().out
