"""Encoder and decoder layers of the Transformer (Vaswani et al., 2017), made of injected parts.

A feed-forward part is any module `part(x (B, T, D), mask (B, T) | None, tag (B, D) | None,
with_aux)` that returns `(y, MoeAux | None)`: dense or sparse, a layer cannot tell.

Shapes: B batch, S source length, T target length, K beam width, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ds_seq.models.cache import LayerPast
from ds_seq.models.output import LayerResult
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.residual import Residual


class TransformerEncoderLayer(nn.Module):
    """Self-attention and feed-forward, each in a residual.

    Args:
        self_attention: attends over the whole sequence.
        feed_forward: see the top of the file.
        d_model: D.
        dropout: on the output of each sub-layer.
        pre_norm: where layer norms stand, see `Residual`.
    """

    def __init__(
        self,
        self_attention: SelfAttention,
        feed_forward: nn.Module,
        d_model: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_residual = Residual(d_model, dropout, pre_norm)
        self.feed_forward = feed_forward
        self.feed_forward_residual = Residual(d_model, dropout, pre_norm)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        token_mask: Tensor | None,
        tag: Tensor | None = None,
        with_maps: bool = False,
    ) -> LayerResult:
        """Transform x.

        Args:
            x: (B, S, D).
            attention_mask: (B, 1, 1, S) added to scores, or None.
            token_mask: (B, S) bool, True at real tokens: what a sparse feed-forward routes; None
                when all are real.
            tag: (B, D) embedding of each sentence's language tag, for feed-forwards routed by it.
            with_maps: whether the attention map is wanted, too.

        Returns:
            Hidden states (B, S, D), and maps: that of self-attention.
        """
        residual = self.self_attention_residual
        y, seen = self.self_attention(residual.enter(x), attention_mask, with_map=with_maps)
        x = residual.leave(x, y)
        residual = self.feed_forward_residual
        y, aux = self.feed_forward(residual.enter(x), token_mask, tag)
        return LayerResult(residual.leave(x, y), aux, (seen,) if with_maps else ())


class TransformerDecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each in a residual.

    Args:
        self_attention: causal.
        cross_attention: looks at the encoded source.
        feed_forward: see the top of the file.
        d_model: D.
        dropout: on the output of each sub-layer.
        pre_norm: where layer norms stand, see `Residual`.
    """

    def __init__(
        self,
        self_attention: SelfAttention,
        cross_attention: CrossAttention,
        feed_forward: nn.Module,
        d_model: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_residual = Residual(d_model, dropout, pre_norm)
        self.cross_attention = cross_attention
        self.cross_attention_residual = Residual(d_model, dropout, pre_norm)
        self.feed_forward = feed_forward
        self.feed_forward_residual = Residual(d_model, dropout, pre_norm)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None,
        source_mask: Tensor | None,
        token_mask: Tensor | None,
        tag: Tensor | None = None,
        past: LayerPast | None = None,
        with_maps: bool = False,
    ) -> LayerResult:
        """Transform x: a whole target, or with `past` the newest token of each hypothesis.

        Args:
            x: (B, T, D), or (B, K, D) with `past`.
            source: encoded source (B, S, D); None with `past`, which holds its projection.
            source_mask: (B, 1, 1, S) added to scores, or None.
            token_mask: (B, T) bool, True at real tokens, or None when all are real.
            tag: (B, D) embedding of each sentence's language tag, for feed-forwards routed by it.
            past: what this call of the layer remembers of earlier steps; it is extended.
            with_maps: whether the attention maps are wanted, too; never with `past`.

        Returns:
            Hidden states like x; nothing of a sparse feed-forward with `past`; maps: those of
            self-attention and cross-attention.
        """
        residual = self.self_attention_residual
        decoded = None if past is None else past.decoded
        y, own = self.self_attention(residual.enter(x), None, decoded, with_maps)
        x = residual.leave(x, y)
        residual = self.cross_attention_residual
        if past is not None:
            memory = past.source
        else:
            assert source is not None
            memory = self.cross_attention.memory(source)
        y, cross = self.cross_attention(residual.enter(x), memory, source_mask, with_maps)
        x = residual.leave(x, y)
        residual = self.feed_forward_residual
        y, aux = self.feed_forward(residual.enter(x), token_mask, tag, past is None)
        return LayerResult(residual.leave(x, y), aux, (own, cross) if with_maps else ())
