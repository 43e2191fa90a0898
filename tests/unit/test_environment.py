"""`ds_seq.environment`: what libraries keep in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ds_seq import environment
from ds_seq.modules.packed import HAS_ONEDNN

_PRODUCTS = """
import resource, torch
from ds_seq import environment
from ds_seq.modules.linear import product

environment.keep_few_kernels(16)
torch.set_num_threads(1)
weight, peaks = torch.randn(384, 96), []
for rows in range(300, 600):
    product(torch.randn(rows, 96), weight)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[-1] - peaks[100])
"""


@pytest.mark.skipif(not HAS_ONEDNN, reason="products of another library")
def test_products_of_ever_new_shapes_take_no_more_memory() -> None:
    """All kernels of 200 shapes would take more than 60 MB."""
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    environ = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", _PRODUCTS]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 << 10


def test_what_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "5")
    environment.keep_few_kernels(64)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == "5"
