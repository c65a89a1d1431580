"""Building and loading the compiled op, each case in a process of its own; and what threads must not change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrcnn_tf.ops import compile as compiled

ROOT = Path(__file__).resolve().parents[2]

# Prints the chosen backend, a digest of values and gradients, and the values' sum.
RUN = """
import hashlib, sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from mrcnn_tf.ops.roi_align import choose, roi_align
from mrcnn_tf.ops.shape_aware import shape_aware_roi_align
rng = np.random.default_rng(0)
maps = [tf.constant(rng.normal(size=(2, 96 // s, 128 // s, 160)), tf.float32) for s in (2, 4, 8)]
corner = rng.uniform(-10, 100, (2, 200, 2))
boxes = np.concatenate([corner, corner + np.exp(rng.uniform(0, 5, (2, 200, 2)))], -1).astype(np.float32)
probabilities = tf.constant(rng.uniform(size=(2, 200, 28, 28)), tf.float32)
options = dict(strides=(2, 4, 8), output_size=7)
digest, total = hashlib.sha256(), 0.0
for pool in (roi_align, lambda f, b, **o: shape_aware_roi_align(f, b, probabilities, **o)):
    with tf.GradientTape() as tape:
        tape.watch([*maps, probabilities])
        out = pool(maps, boxes, **options)
        loss = tf.reduce_sum(out**2)
    for x in [out, *(g for g in tape.gradient(loss, [*maps, probabilities]) if g is not None)]:
        digest.update(x.numpy().tobytes())
        total += float(tf.reduce_sum(tf.abs(x)))
print(choose("auto", 2), digest.hexdigest(), total)
"""


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    names = ("CXX", "MRCNN_TF_CUSTOM_OPS", "MRCNN_TF_CACHE")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    environment = {**inherited, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen) -> tuple[str, str, float, str]:
    """Backend, digest, sum and what was said."""
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    backend, digest, total = out.split()
    return backend, digest, float(total), said


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache folder filled by one process, and what that one printed."""
    try:
        compiled.cached_path([os.environ.get("CXX") or "g++"])
    except RuntimeError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cache")
    return folder, finish(start(RUN, "1", MRCNN_TF_CACHE=str(folder)))


def fake_compiler(path: Path, body: str) -> str:
    """A script that knows its version and does `body` when asked to compile."""
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


def test_built_once_with_one_message(built):
    folder, (backend, _, _, said) = built
    assert backend == "custom"
    assert said.count("compiling RoIAlign for TensorFlow") == 1
    assert [path.suffix for path in folder.iterdir()] == [".so"]


def test_built_library_is_used_again_and_threads_change_no_bit(built):
    folder, first = built
    before = [(path, path.stat().st_mtime_ns) for path in folder.iterdir()]
    processes = [start(RUN, threads, MRCNN_TF_CACHE=str(folder)) for threads in ("2", "5")]
    again = [finish(process) for process in processes]
    assert [(path, path.stat().st_mtime_ns) for path in folder.iterdir()] == before
    assert not any("compiling" in run[3] for run in again)
    assert {run[1] for run in again} == {first[1]}


def test_two_processes_build_at_once(built, tmp_path):
    folder, first = built
    (library,) = folder.iterdir()
    # Slow, and it writes its file in two pieces.
    body = (
        'while [ "$1" != -o ]; do shift; done\n'
        f'head -c 9999 {library} > "$2"\nsleep 2\ntail -c +10000 {library} >> "$2"'
    )
    environment = {"CXX": fake_compiler(tmp_path / "g++", body), "MRCNN_TF_CACHE": str(tmp_path / "cache")}
    processes = [start(RUN, threads, **environment) for threads in ("1", "2")]
    runs = [finish(process) for process in processes]
    assert all(run[:2] == first[:2] for run in runs)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


def test_processors_without_avx512_and_avx2(built, tmp_path):
    _, first = built
    compilers = [f"{os.environ.get('CXX') or 'g++'} -DMRCNN_MAX_LANES={lanes}" for lanes in (8, 4)]
    processes = [start(RUN, "1", CXX=compiler, MRCNN_TF_CACHE=str(tmp_path)) for compiler in compilers]
    for process in processes:
        backend, digest, total, _ = finish(process)
        assert backend == "custom"
        assert digest != first[1]  # other registers, other order of the sums: so it was another copy
        assert abs(total - first[2]) < 1e-4 * first[2]


def test_packaged_library_needs_no_compiler(built, tmp_path):
    folder, first = built
    (library,) = folder.iterdir()
    code = f"""
import shutil
from pathlib import Path
from mrcnn_tf.ops import compile as compiled
compiled.PACKAGED = Path({str(tmp_path)!r})
shutil.copy({str(library)!r}, compiled.packaged_path())
{RUN}"""
    backend, digest, _, said = finish(start(code, "2", CXX="/nonexistent/g++"))
    assert (backend, digest) == ("custom", first[1])
    assert "Warning" not in said


def same_values_without(built, said_once: str, **environment: str) -> str:
    _, first = built
    backend, _, total, said = finish(start(RUN, "2", **environment))
    assert backend == "sparse"
    assert abs(total - first[2]) < 1e-4 * first[2]
    assert said.count("RuntimeWarning") == said.count(said_once) == 1
    return said


def test_without_a_compiler(built, tmp_path):
    same_values_without(
        built,
        "there is no C++ compiler /nonexistent/g++",
        CXX="/nonexistent/g++",
        MRCNN_TF_CACHE=str(tmp_path),
    )


def test_compiler_that_is_no_command(monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'half a quote")
    with pytest.raises(RuntimeError, match="CXX is .* which is no command: No closing quotation"):
        compiled.build()


def test_failed_build(built, tmp_path):
    body = 'echo "In file included from x.h:" >&2\necho "x.cc:1: error: no luck" >&2\nexit 1'
    compiler = fake_compiler(tmp_path / "g++", body)
    cache = tmp_path / "cache"
    said = same_values_without(
        built, "could not be compiled: x.cc:1: error: no luck", CXX=compiler, MRCNN_TF_CACHE=str(cache)
    )
    (log,) = cache.iterdir()
    assert f"(log: {log})" in said
    assert "In file included" in log.read_text()


def test_library_that_cannot_be_loaded(built, tmp_path):
    folder, _ = built
    (library,) = folder.iterdir()
    (tmp_path / library.name).write_text("not a library")
    same_values_without(built, "cannot be built or loaded", MRCNN_TF_CACHE=str(tmp_path))


def test_folder_that_cannot_be_written(built, tmp_path):
    (tmp_path / "file").write_text("")
    same_values_without(built, "cannot be built or loaded", MRCNN_TF_CACHE=str(tmp_path / "file" / "cache"))


def test_turned_off(tmp_path):
    backend, *_, said = finish(start(RUN, "2", MRCNN_TF_CUSTOM_OPS="0", MRCNN_TF_CACHE=str(tmp_path)))
    assert backend == "sparse"
    assert "Warning" not in said and "compiling" not in said
    assert not list(tmp_path.iterdir())


def test_asked_for_but_not_to_be_had():
    code = """
import numpy as np
from mrcnn_tf.ops.roi_align import roi_align
try:
    roi_align([np.ones((1, 4, 4, 1), np.float32)], np.ones((1, 1, 4)), strides=(4,), output_size=2, backend="custom")
except RuntimeError as error:
    print("custom", "error", 0, file=__import__("sys").stdout)
    print(error, file=__import__("sys").stderr)
"""
    *_, said = finish(start(code, CXX="/nonexistent/g++", MRCNN_TF_CACHE="/nonexistent"))
    assert "there is no C++ compiler /nonexistent/g++ to build RoIAlign with (CXX names one)" in said
    *_, said = finish(start(code, MRCNN_TF_CUSTOM_OPS="0"))
    assert "the compiled RoIAlign is turned off (MRCNN_TF_CUSTOM_OPS=0)" in said


def test_key_changes_with_the_source(tmp_path, monkeypatch):
    before = compiled.packaged_path()
    changed = tmp_path / "roi_align.cc"
    changed.write_bytes(compiled.SOURCES[0].read_bytes() + b"\n")
    monkeypatch.setattr(compiled, "SOURCES", (changed, *compiled.SOURCES[1:]))
    assert compiled.packaged_path() != before
