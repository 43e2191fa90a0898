"""Token embedding, optionally tied to the output projection.

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
    """One matrix (V, D) that looks tokens up and, when tied, also scores them.

    Both uses go through `forward`, because ZeRO-3 gathers a parameter only around the call of the
    module that owns it (Press and Wolf, 2017, for the tying; embeddings are scaled by sqrt(D) as
    in Vaswani et al., 2017).

    Args:
        vocab_size: V.
        d_model: D.
        pad_id: its row gets no gradient from looking up.
    """

    _packed: Packed | None = None

    def __init__(self, vocab_size: int, d_model: int, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.scale = math.sqrt(d_model)
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))

    def draw_parameters(self) -> None:
        """Normal with deviation D ** -0.5, the padding row zero. See `ds_seq.models.init`."""
        nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)
        with torch.no_grad():
            self.weight[self.pad_id].zero_()

    def pack(self, int8: bool = False) -> None:
        """Use a packed copy to score with from now on; see `ds_seq.modules.packed`."""
        self._packed = pack(self.weight, None, int8)

    def forward(self, x: Tensor, project: bool = False) -> Tensor:
        """Look up token ids, or score hidden states against every token.

        Args:
            x: token ids (B, T), or hidden states (..., D) when `project`.
            project: which of the two.

        Returns:
            Scaled embeddings (B, T, D), or logits (..., V).
        """
        if project:
            return linear(x, self.weight, packed=self._packed)
        return F.embedding(x, self.weight, padding_idx=self.pad_id) * self.scale
