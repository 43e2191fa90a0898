"""Faster than `torch.topk`, but the same."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.search.top_k import top_continuations, top_k


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


@pytest.mark.parametrize("width", [6, 64, 640, 4000, 4001, 4063])
@pytest.mark.parametrize("beam", [1, 5])
def test_the_best_continuations_of_a_sentence(width: int, beam: int) -> None:
    generator = torch.Generator().manual_seed(width)
    sentences, count = 7, 2 * beam
    values = torch.randn(sentences * beam, width, generator=generator)
    values[0, :-5] = -math.inf
    values[beam] = torch.arange(width)  # all in the last group
    values[beam + 1] = torch.arange(width).remainder(64)  # each group's largest is the same
    offsets = torch.randn(sentences, beam, generator=generator)
    offsets[2, 1:] = -math.inf  # as before the first step
    best, rows, columns = top_continuations(values, offsets, count)
    sums = values.view(sentences, beam, width) + offsets[:, :, None]
    assert torch.equal(best, sums.flatten(1).topk(count, dim=1)[0])
    assert (columns < width).all()
    places = rows * width + columns
    assert torch.equal(sums.flatten(1).gather(1, places), best)
    assert all(len(set(row)) == count for row in places.tolist())


@pytest.mark.parametrize("width", [6, 640, 4001])
def test_rows_of_nan_never_win(width: int) -> None:
    values = torch.randn(6, width, generator=torch.Generator().manual_seed(width))
    values[1:3], values[3:] = math.nan, math.nan
    without = values.nan_to_num(nan=-math.inf)
    found = top_continuations(values, torch.zeros(2, 3), 4)
    for part, expected in zip(found, top_continuations(without, torch.zeros(2, 3), 4), strict=True):
        assert torch.equal(part, expected)
    assert found[0][0].isfinite().all()
    assert found[0][1].eq(-math.inf).all()
