"""Parts of a model as CTranslate2 stores them.

Shapes: D model width, P positions, V vocabulary, W width of a factorized table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ds_seq.modules.embedding import TokenEmbedding


def value(tensor: Tensor) -> Tensor:
    """Return a parameter as it is stored."""
    return tensor.detach().float().contiguous()


def table(embedding: TokenEmbedding) -> Tensor:
    """Return the embeddings (V, D) before they are scaled; factors (V, W) and (D, W) multiplied."""
    weight = value(embedding.weight)
    return weight if embedding.factor is None else weight @ value(embedding.factor.weight).t()


def linear(spec: Any, part: nn.Linear, divisor: float = 1.0) -> None:
    """Copy a linear map.

    Args:
        spec: where to.
        part: the map.
        divisor: number by which its output is divided: the factor of the other summand, which
            CTranslate2 does not have, where a norm follows that ignores the scale of the sum.
    """
    spec.weight = value(part.weight) / divisor
    if part.bias is not None:
        spec.bias = value(part.bias) / divisor


def norm(spec: Any, part: nn.Module) -> None:
    """Copy a layer norm, or an RMSNorm, which has no shift."""
    parameters = dict(part.named_parameters(recurse=False))
    spec.gamma = value(parameters["weight"])
    if "bias" in parameters:
        spec.beta = value(parameters["bias"])


def position_rows(positions: nn.Module | None, count: int, width: int) -> Tensor:
    """Return the vectors (P, D) that are added to embedded tokens; zeros without positions."""
    rows = torch.zeros(1, count, width)
    if positions is None:  # without rows, CTranslate2 would add its own
        return rows[0]
    with torch.no_grad():
        return value(positions(rows, 0, count)[0])
