"""Whether the experts of transformers get the tokens that its router sends them.

`NllbMoeExperts` of transformers 5 (seen in 5.0.0 and 5.24.0) gives the tokens of all first choices
to `expert_1`, and those of all second choices to `expert_0`. 4.57 is right.

Shapes: N tokens, D model width, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TOKENS, _TOLERANCE = 16, 1e-3


@torch.no_grad()
def misroutes(peer: Any) -> bool:
    """Return whether the first layer with experts of a model of NLLB-MoE computes something else.

    Args:
        peer: a model of transformers in evaluation mode.
    """
    layers = [part for part in peer.modules() if type(part).__name__ == "NllbMoeSparseMLP"]
    if not layers:
        return False
    weight = layers[0].router.classifier.weight
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(_TOKENS, weight.size(1), generator=draw, dtype=torch.float64)
    result = layers[0](x.unsqueeze(0), None)
    found = result[0] if isinstance(result, tuple) else result  # before 5.0, with the routing
    expected = _expected(layers[0], x) * (1.0 - peer.config.moe_token_dropout)
    largest = float(expected.abs().max())
    return not torch.allclose(found.view_as(x), expected, atol=_TOLERANCE * largest)


def _expected(layer: Any, x: Tensor) -> Tensor:
    """Return what the two experts of each token compute (N, D), weighted by their probabilities."""
    scores = x.float() @ layer.router.classifier.weight.float().T
    weights, chosen = scores.softmax(-1).topk(2, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    outputs = torch.stack([expert(x) for expert in layer.experts.values()], dim=1)  # (N, E, D)
    own = outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.size(1)))
    return (own * weights.unsqueeze(-1)).sum(1)
