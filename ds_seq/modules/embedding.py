"""Token embedding, which can also be the output projection (tied weights).

Shapes: B batch, T tokens, N selected rows, D model width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.linear import linear
from ds_seq.modules.packed import Packed, pack


class TokenEmbedding(nn.Module):
    """A matrix (V, D) that embeds tokens and, if tied, also scores them.

    Both uses go through `forward`, because ZeRO-3 gathers a parameter only around the call of the
    module that owns it (for tying, see Press and Wolf, 2017). Embeddings are scaled by sqrt(D) as
    in Vaswani et al. (2017).

    Args:
        vocab_size: size of the vocabulary, V.
        d_model: width of the model, D.
        pad_id: padding token; its row gets no gradient from embedding.
    """

    _packed: Packed | None = None

    def __init__(self, vocab_size: int, d_model: int, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.scale = math.sqrt(d_model)
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))

    def draw_parameters(self) -> None:
        """Draw a normal distribution of deviation D ** -0.5; the padding row is zero."""
        nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)
        with torch.no_grad():
            self.weight[self.pad_id].zero_()

    def pack(self, int8: bool = False) -> None:
        """Score with a packed copy from now on, see `ds_seq.modules.packed`."""
        self._packed = pack(self.weight, None, int8)

    def forward(self, x: Tensor, project: bool = False) -> Tensor:
        """Embed token ids, or score hidden states against every token.

        Args:
            x: token ids (B, T), or hidden states (..., D) if `project`.
            project: whether to score hidden states instead of embedding tokens.

        Returns:
            Scaled embeddings (B, T, D), or logits (..., V).
        """
        if project:
            return linear(x, self.weight, packed=self._packed)
        return F.embedding(x, self.weight, padding_idx=self.pad_id) * self.scale
