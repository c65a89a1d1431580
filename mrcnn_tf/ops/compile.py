"""Builds and loads the compiled RoIAlign: once for each TensorFlow, compiler and source, kept in a cache folder.

Environment variables:
    MRCNN_TF_CUSTOM_OPS: `0` turns the compiled op off; the stock backends take over.
    MRCNN_TF_CACHE: the folder for what is built (default: `mrcnn_tf` in XDG_CACHE_HOME or `~/.cache`).
    CXX: the compiler (default: g++).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType

import tensorflow as tf

FOLDER = Path(__file__).resolve().parent
SOURCES = tuple(FOLDER / "csrc" / name for name in ("roi_align.cc", "roi_align_kernels.inc"))
PACKAGED = FOLDER / "lib"
FLAGS = ("-shared", "-fPIC", "-O3")

_lock = threading.Lock()  # a distribution strategy traces its replicas in several threads
_loaded: list[ModuleType | RuntimeError] = []
_warned = False


@tf.autograph.experimental.do_not_convert
def library() -> ModuleType:
    """The compiled ops, built if need be. The first call decides for the whole process.

    Raises:
        RuntimeError: turned off, no compiler, or the build failed.
    """
    with _lock:
        found = _decide()
    if isinstance(found, RuntimeError):
        raise RuntimeError(str(found))
    return found


@tf.autograph.experimental.do_not_convert
def available() -> bool:
    """Whether the compiled ops can be had; if not, and nobody turned them off, the first call warns."""
    global _warned
    with _lock:
        found = _decide()
        if isinstance(found, RuntimeError) and not _warned and not turned_off():
            _warned = True
            warnings.warn(
                f"{found}; RoIAlign runs on stock TensorFlow ops with the same results, but slower. "
                "MRCNN_TF_CUSTOM_OPS=0 silences this",
                RuntimeWarning,
                stacklevel=2,
            )
    return not isinstance(found, RuntimeError)


def _decide() -> ModuleType | RuntimeError:
    if not _loaded:
        try:
            _loaded.append(_load())
        except RuntimeError as error:
            _loaded.append(error)
    return _loaded[0]


def turned_off() -> bool:
    """Whether the user asked for stock ops."""
    return os.environ.get("MRCNN_TF_CUSTOM_OPS", "1") == "0"


def build(package: bool = False) -> Path:
    """Compiles the ops, unless that has been done.

    Args:
        package: into the package's own folder, from where it is taken whatever the compiler, and where a wheel
            takes it along.

    Returns:
        The library.

    Raises:
        RuntimeError: no compiler, or the build failed; with its first error and the log's path.
        OSError: the folder cannot be written.
    """
    try:
        compiler = shlex.split(os.environ.get("CXX") or "g++")
    except ValueError as error:
        raise RuntimeError(f"CXX is {os.environ['CXX']!r}, which is no command: {error}") from None
    target = packaged_path() if package else cached_path(compiler)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    version = ".".join(tf.__version__.split(".")[:2])
    print(f"compiling RoIAlign for TensorFlow {version} (once, about 10 s) ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    # Aside and renamed: of two processes that build at once, none loads the other's unfinished file.
    handle, aside = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=target.parent)
    os.close(handle)
    log = target.with_suffix(".log")
    try:
        done = subprocess.run(
            [*compiler, str(SOURCES[0]), *_flags(), "-o", aside, *_link_flags()],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            with contextlib.suppress(OSError):  # a full disk must not hide the compiler's words
                log.write_text(f"{shlex.join(map(str, done.args))}\n{done.stdout}{done.stderr}")
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            first = next((line for line in lines if "error" in line.lower()), lines[0]).strip()
            raise RuntimeError(f"RoIAlign could not be compiled: {first} (log: {log})")
        os.chmod(aside, 0o755)
        os.replace(aside, target)
    except OSError as error:
        raise RuntimeError(f"RoIAlign could not be compiled with {compiler[0]}: {error.strerror}") from error
    finally:
        Path(aside).unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    print(f"compiled in {time.perf_counter() - start:.0f} s: {target}", file=sys.stderr, flush=True)
    return target


def cache_folder() -> Path:
    """Where libraries are kept that were built at first use."""
    own = os.environ.get("MRCNN_TF_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mrcnn_tf"


def cached_path(compiler: list[str]) -> Path:
    """The library of this TensorFlow, compiler and source in the cache folder.

    Raises:
        RuntimeError: the compiler cannot be run.
    """
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"there is no C++ compiler {shlex.join(compiler)} to build RoIAlign with (CXX names one)"
        ) from error
    digest = _digest(shlex.join(compiler), version)
    return cache_folder() / f"roi_align-{tf.__version__}-{platform.machine()}-{digest}.so"


def packaged_path() -> Path:
    """The library of this TensorFlow and source in the package's folder."""
    return PACKAGED / f"roi_align-{tf.__version__}-{platform.machine()}-{_digest()}.so"


def _load() -> ModuleType:
    if turned_off():
        raise RuntimeError("the compiled RoIAlign is turned off (MRCNN_TF_CUSTOM_OPS=0)")
    packaged = packaged_path()
    try:
        path = packaged if packaged.exists() else build()
        return tf.load_op_library(str(path))
    except (OSError, tf.errors.OpError) as error:
        raise RuntimeError(f"the compiled RoIAlign cannot be built or loaded: {error}") from error


def _digest(*more: str) -> str:
    """Sixteen hex digits that change with the sources, the flags and `more`."""
    digest = hashlib.sha256(repr((tf.version.COMPILER_VERSION, FLAGS, more)).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _flags() -> list[str]:
    # TensorFlow's headers as those of the system, so that warnings are about our source.
    return [*FLAGS, *(f.replace("-I", "-isystem", 1) for f in tf.sysconfig.get_compile_flags())]


def _link_flags() -> list[str]:
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    return [*tf.sysconfig.get_link_flags(), *undefined]
