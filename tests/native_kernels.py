"""The kernels in C for tests: those of the installation if they are of this source, or compiled."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from ds_seq.modules import native

FOLDER = Path(native.__file__).parent


@cache
def kernels(folder: Path) -> ctypes.CDLL:
    """Return the kernels; `folder` is for what is compiled. Without a compiler, the test skips."""
    sources = sorted(FOLDER.glob("native*.c"))
    newest = max(path.stat().st_mtime for path in (*sources, *FOLDER.glob("native*.h")))
    for installed in FOLDER.glob("_native.*"):
        found = native.load(installed) if installed.stat().st_mtime > newest else None
        if found is not None:
            return found
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    path = folder / "native.so"
    command = [compiler, "-O3", "-Wno-psabi", "-shared", "-fPIC", "-o", path, *sources, "-lm"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc is older than 12")
    compiled = native.load(path)
    assert compiled is not None
    return compiled
