"""The few best of very many.

Shapes: N rows, V columns, G width of a group of columns, M = V / G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 64


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along the last dimension, two to three times as fast on wide rows on a CPU.

    The k largest of a row lie in the k groups with the largest maxima. Maxima are found at the
    speed of memory; only what is in those groups is then sorted.

    Args:
        values: (N, V), contiguous.
        k: how many; at most V.

    Returns:
        The values (N, k), the largest first, and their columns (N, k). Of equal values at the
        margin any may be chosen.
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
