"""The head of BERT: a map, an activation and a norm between states and the vocabulary.

Shapes: N tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ds_seq.modules.activations import find_activation
from ds_seq.modules.linear import Linear


class DenseHead(nn.Module):
    """`norm(activation(dense(x)))` (Devlin et al., 2019, arXiv:1810.04805).

    Args:
        d_model: width of input and output, D.
        activation: name of an entry of `ds_seq.modules.activations` without a gate.
        norm: norm of the result.

    Raises:
        ValueError: unknown activation.
    """

    def __init__(self, d_model: int, activation: str, norm: nn.Module) -> None:
        super().__init__()
        entry = find_activation(activation)
        self._fused, self._rest = entry.fused, entry.rest
        self.dense = Linear(d_model, d_model)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Transform states x (N, D): (N, D)."""
        hidden = self.dense(x, self._fused)
        if self._rest is not None:
            hidden = self._rest(hidden)
        normed: Tensor = self.norm(hidden)
        return normed
