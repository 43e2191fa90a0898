"""The kernels in C for tests: those of the installation if they are of this source, or compiled."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

import pytest

from ds_seq.modules import native
from ds_seq.modules.native_sources import digest

FOLDER = Path(native.__file__).parent


@cache
def kernels(folder: Path) -> ctypes.CDLL:
    """Return the kernels; `folder` is for what is compiled. Without a compiler, the test skips."""
    for installed in FOLDER.glob("_native.*"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other sources
            found = native.load(installed)
        if found is not None:
            return found
    sources = sorted(FOLDER.glob("native*.c"))
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    path = folder / "native.so"
    options = ["-O3", "-Wno-psabi", "-shared", "-fPIC", f'-DDS_SEQ_SOURCES="{digest()}"']
    command = [compiler, *options, "-o", path, *sources, "-lm"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc is older than 12")
    compiled = native.load(path)
    assert compiled is not None
    return compiled
