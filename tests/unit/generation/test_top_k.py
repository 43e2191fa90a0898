"""Faster than `torch.topk`, but the same."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.generation.top_k import top_k


@pytest.mark.parametrize("width", [6, 64, 640, 8000, 8001])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_same_as_torch(width: int, k: int) -> None:
    values = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    values[0, :-5] = -math.inf
    values[1] = torch.arange(width)  # all in the last group
    values[2] = torch.arange(width).remainder(64)  # each group's largest is the same
    best, columns = top_k(values, k)
    assert torch.equal(best, values.topk(k, dim=1)[0])
    assert torch.equal(values.gather(1, columns), best)
    assert all(len(set(row)) == k for row in columns.tolist())
