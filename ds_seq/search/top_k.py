"""Fast top-k of wide rows.

The k largest of many numbers lie in the k groups with the largest maxima. Finding the maxima is
limited only by memory bandwidth; then only the members of those groups are sorted.

Shapes: N rows, V columns, G width of a group of columns, M = V / G groups, A sentences, K rows per
sentence (N = A K), C number of results per sentence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ds_seq.modules import native

_GROUP = 64


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row, two to three times as fast on a CPU as `torch.topk`.

    Args:
        values: values (N, V), contiguous.
        k: number of values; at most V.

    Returns:
        The values (N, k), the largest first, and their columns (N, k). Ties at the cutoff are
        broken arbitrarily.
    """
    num_rows, width = values.shape
    num_groups = width // _GROUP
    if width % _GROUP or num_groups < 2 * k:
        best, columns = values.topk(k, dim=1)
        return best, columns
    groups = values.view(num_rows, num_groups, _GROUP).amax(2).topk(k, dim=1, sorted=False)[1]
    first_group = torch.arange(num_rows, device=values.device)[:, None] * num_groups
    chosen = values.view(-1, _GROUP).index_select(0, (first_group + groups).flatten())  # (N k, G)
    best, places = chosen.view(num_rows, k * _GROUP).topk(k, dim=1)
    return best, groups.gather(1, places // _GROUP) * _GROUP + places % _GROUP


def top_continuations(values: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest of `values + offsets` among all rows of a sentence.

    This is two to five times as fast on a CPU as a top-k per row first: a sentence has one short
    list to sort instead of K.

    Args:
        values: values (N, V), contiguous.
        offsets: offset of each row, (A, K).
        count: number of results C; at most K V.

    Returns:
        The sums, their rows (below K) and their columns: (A, C) each, the largest first. Ties at
        the cutoff are broken arbitrarily. NaN counts as -inf and is returned as -inf.
    """
    if (found := native.best(values, offsets, count)) is not None:
        return found
    num_sentences, num_rows = offsets.shape
    width = values.size(1)
    num_groups = width // _GROUP
    if num_rows * num_groups < 2 * count:
        sums = (values.view(num_sentences, num_rows, width) + offsets[:, :, None]).flatten(1)
        best, chosen = _without_nan(sums).topk(count, dim=1)
        return best, chosen // width, chosen % width
    whole = num_groups * _GROUP
    maxima = values[:, :whole].unflatten(1, (num_groups, _GROUP)).amax(2)  # (N, M)
    if whole < width:  # the remaining columns form a group, too
        maxima = torch.cat([maxima, values[:, whole:].amax(1, keepdim=True)], dim=1)
        num_groups += 1
    maxima = maxima.view(num_sentences, num_rows, num_groups) + offsets[:, :, None]
    groups = _without_nan(maxima).flatten(1).topk(count, dim=1, sorted=False)[1]  # (A, C)
    rows = groups // num_groups
    columns = (groups % num_groups * _GROUP)[:, :, None] + torch.arange(
        _GROUP, device=values.device
    )  # (A, C, G)
    first_rows = torch.arange(num_sentences, device=values.device)[:, None] * num_rows
    starts = ((first_rows + rows) * width)[:, :, None]
    sums = values.view(-1).take(starts + columns.clamp(max=width - 1))
    sums = sums.masked_fill_(columns >= width, -math.inf) + offsets.gather(1, rows)[:, :, None]
    best, places = _without_nan(sums).flatten(1).topk(count, dim=1)
    return best, rows.gather(1, places // _GROUP), columns.flatten(1).gather(1, places)


def _without_nan(sums: Tensor) -> Tensor:
    """Replace NaN by -inf, in place: `topk` would treat NaN as the largest value."""
    return sums.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
