"""Token embedding, which can also be the output projection (tied weights).

Shapes: B batch, T tokens, N selected rows, D model width, W width of the table, V vocabulary, U
some tokens of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.linear import Linear, linear, some_outputs
from ds_seq.modules.packed import Packed, pack


class TokenEmbedding(nn.Module):
    """A matrix (V, W) that embeds tokens and, if tied, also scores them.

    Both uses go through `forward`, because ZeRO-3 gathers a parameter only around the call of the
    module that owns it (for tying, see Press and Wolf, 2017). Embeddings are scaled by sqrt(D) as
    in Vaswani et al. (2017).

    W is D, or less if the embedding is factorized (Lan et al., 2019): then a matrix (D, W) follows
    the table, and precedes it when it scores.

    Args:
        vocab_size: size of the vocabulary, V.
        d_model: width of the model, D.
        pad_id: padding token; its row gets no gradient from embedding.
        width: width of the table, W; None for D, without a matrix.
        scaled: whether embeddings are multiplied by sqrt(D).
        biased: whether there is a bias (V,) of the scores.
    """

    _packed: Packed | None = None

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        pad_id: int,
        width: int | None = None,
        scaled: bool = True,
        biased: bool = False,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.scale = math.sqrt(d_model) if scaled else 1.0
        self.weight = nn.Parameter(torch.empty(vocab_size, width or d_model))
        self.bias = nn.Parameter(torch.empty(vocab_size)) if biased else None
        self.factor = None if width is None else Factor(width, d_model)

    def draw_parameters(self) -> None:
        """Draw a normal distribution of deviation W ** -0.5; padding row and bias are zero."""
        nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)
        with torch.no_grad():
            self.weight[self.pad_id].zero_()
            if self.bias is not None:
                self.bias.zero_()

    def pack(self, int8: bool = False) -> None:
        """Score with a packed copy from now on, see `ds_seq.modules.packed`."""
        self._packed = pack(self.weight, self.bias, int8)

    def scorer(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that scores hidden states (..., D) against some tokens (U,)."""
        scores, factor = some_outputs(self.weight, self.bias, self._packed, tokens), self.factor
        return scores if factor is None else lambda x: scores(factor(x, back=True))

    def forward(self, x: Tensor, project: bool = False) -> Tensor:
        """Embed token ids, or score hidden states against every token.

        Args:
            x: token ids (B, T), or hidden states (..., D) if `project`.
            project: whether to score hidden states instead of embedding tokens.

        Returns:
            Scaled embeddings (B, T, D), or logits (..., V).
        """
        if project:
            if self.factor is not None:
                x = self.factor(x, back=True)
            return linear(x, self.weight, self.bias, packed=self._packed)
        embedded = F.embedding(x, self.weight, padding_idx=self.pad_id)
        if self.factor is not None:
            embedded = self.factor(embedded)
        return embedded if self.scale == 1.0 else embedded * self.scale


class Factor(nn.Module):
    """The second factor (D, W) of an embedding, used in both directions.

    Args:
        width: W.
        d_model: D.
    """

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, width))

    def draw_parameters(self) -> None:
        """Draw a normal distribution of deviation D ** -0.5: the product has that of a table."""
        nn.init.normal_(self.weight, std=self.weight.size(0) ** -0.5)

    def forward(self, x: Tensor, back: bool = False) -> Tensor:
        """Map x (..., W) to (..., D), or with `back` (..., D) to (..., W)."""
        return linear(x, self.weight.t() if back else self.weight)


def token_scores(hidden: Tensor, table: nn.Module, output: nn.Module | None) -> Tensor:
    """Score hidden states (..., D) against the vocabulary; returns logits (..., V).

    Args:
        hidden: the states.
        table: embedding of the tokens, which scores if the output is tied to it.
        output: projection to the vocabulary (D -> V); None if tied.
    """
    logits: Tensor = table(hidden, project=True) if output is None else output(hidden)
    return logits


def token_scorer(
    tokens: Tensor, table: TokenEmbedding, output: nn.Module | None
) -> Callable[[Tensor], Tensor]:
    """Return a function that scores hidden states (..., D) against some tokens, for many calls.

    Args:
        tokens: (U,) int64.
        table: see `token_scores`.
        output: see `token_scores`; a kind of map that has no part of its own scores all tokens.

    Returns:
        (..., D) -> logits (..., U), those of `token_scores`.
    """
    if output is None:
        return table.scorer(tokens)
    if type(output) is Linear:
        return output.scorer(tokens)
    return lambda hidden: output(hidden).index_select(-1, tokens)
