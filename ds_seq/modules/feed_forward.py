"""The dense position-wise feed-forward network.

Shapes: B batch, T tokens, D model width, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.dropout import dropout
from ds_seq.modules.linear import Linear


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def _nothing(x: Tensor) -> Tensor:
    return x


# what the first map applies by itself, and what is left to do
_ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "relu": ("relu", _nothing),
    "gelu": ("none", F.gelu),
    "swiglu": ("none", _swiglu),
}


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, each token on its own.

    `relu` (Vaswani et al., 2017) and `gelu` use two matrices. `swiglu` (Shazeer, 2020) multiplies
    `silu(gate(x))` with `value(x)`; gate and value are one fused matrix. Its inner width is
    `ffn_dim` as well, so at equal `ffn_dim` it has three matrices against two, i.e. half as many
    parameters again; set `ffn_dim` to two thirds for an equal count.

    Args:
        d_model: width D of input and output.
        ffn_dim: inner width F.
        activation: "relu", "gelu" or "swiglu".
        dropout: probability of dropping an inner activation in training.
    """

    def __init__(self, d_model: int, ffn_dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, not {activation}")
        self.activation = activation
        self.dropout = dropout
        self._fused, self._activate = _ACTIVATIONS[activation]
        self.up = Linear(d_model, 2 * ffn_dim if activation == "swiglu" else ffn_dim)
        self.down = Linear(ffn_dim, d_model)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        tag: Tensor | None = None,
        with_aux: bool = True,
    ) -> tuple[Tensor, None]:
        """Transform x (B, T, D).

        Args:
            x: hidden states (B, T, D).
            mask: (B, T) real tokens; unused, as the rest is: a sparse layer can take this one's
                place.
            tag: (B, D) embeddings of language tags.
            with_aux: whether a sparse layer should return its losses.

        Returns:
            The transformed states (B, T, D), and None where a sparse layer returns its losses.
        """
        hidden = self._activate(self.up(x, self._fused))
        return self.down(dropout(hidden, self.dropout, self.training)), None
