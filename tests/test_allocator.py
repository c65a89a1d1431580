import ctypes.util
import os
import subprocess
import sys

import pytest

CODE = "from mrcnn_tf.allocator import keep_memory; print(keep_memory())"


def run(**variables):
    names = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    return subprocess.run(
        [sys.executable, "-c", CODE], env={**environment, **variables}, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif("libc.so.6" not in (ctypes.util.find_library("c") or ""), reason="needs glibc")
def test_sets_glibc():
    assert run() == "True"


def test_the_users_own_setting_has_precedence():
    assert run(MALLOC_MMAP_MAX_="4") == "False"
