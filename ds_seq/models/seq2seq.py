"""The sequence-to-sequence Transformer (Vaswani et al., 2017), dense or sparse.

Tensors are batch-first, padding is on the right, masks are True at real tokens.

Shapes: B batch, S source length, T target length, K beam width, N rows, D model width,
V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.models.cache import DecoderCache, padding_mask
from ds_seq.models.output import (
    Detail,
    EncoderOutput,
    LayerOutputs,
    ModelOutput,
    StackResult,
    sum_aux,
    sum_losses,
)
from ds_seq.models.stack import Stack
from ds_seq.modules.body import Context
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.moe.layer import MoeFeedForward


class Seq2SeqTransformer(nn.Module):
    """Encoder, decoder, and the embeddings and projection around them.

    Args:
        encoder: turns embedded source tokens into hidden states.
        decoder: turns embedded target tokens and hidden states into hidden states.
        target_embedding: looks target tokens up.
        source_embedding: looks source tokens up; None: `target_embedding` does.
        output: scores hidden states (D -> V); None: `target_embedding` does (tied).
        pad_id: the padding token.
        max_positions: longest sequence the model is meant for, in tokens.
        routes_by_tag: whether feed-forwards want the embedding of the tag that opens the source.
    """

    def __init__(
        self,
        encoder: Stack,
        decoder: Stack,
        target_embedding: TokenEmbedding,
        source_embedding: TokenEmbedding | None,
        output: nn.Linear | None,
        pad_id: int,
        max_positions: int,
        routes_by_tag: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target_embedding = target_embedding
        self.source_embedding = source_embedding
        self.output = output
        self.pad_id = pad_id
        self.max_positions = max_positions
        self.routes_by_tag = routes_by_tag

    def forward(
        self,
        src: Tensor,
        tgt_in: Tensor,
        select: Tensor | None = None,
        num_selected: int | None = None,
        detail: Detail = "none",
    ) -> ModelOutput:
        """Score a target given its source.

        Args:
            src: source tokens (B, S).
            tgt_in: target tokens (B, T), shifted right by one.
            select: (B, T) bool, the rows to be scored (those whose target is not padding); the
                projection to the vocabulary, the dearest part of the model, skips all others.
            num_selected: how many rows `select` selects, if the caller knows: on a GPU it saves
                waiting for the device to count them.
            detail: what is wanted of the layers, of all rows; attention maps cost the fused
                kernels.

        Returns:
            Logits (B, T, V), or (N, V) in row-major order of `select`, what sparse layers add, and
            what layers show.
        """
        encoded = self.encode(src, detail)
        decoded: StackResult = self.decoder(
            self.target_embedding(tgt_in),
            _decoder_context(encoded)._replace(
                token_mask=tgt_in.ne(self.pad_id) if select is None else select
            ),
            detail,
        )
        hidden = decoded.hidden
        if select is not None:
            hidden = _select_rows(hidden, select, num_selected)
        return ModelOutput(
            self._project(hidden),
            sum_losses([encoded.gate_losses, sum_aux(decoded.aux)]),
            encoded.moe_stats + [layer.stats for layer in decoded.aux],
            None if detail == "none" else _layer_outputs(encoded, decoded),
        )

    def encode(self, src: Tensor, detail: Detail = "none") -> EncoderOutput:
        """Encode source tokens (B, S); `detail` is what is wanted of the layers."""
        mask = src.ne(self.pad_id)
        embedding = self.source_embedding
        embedded = self.target_embedding(src) if embedding is None else embedding(src)
        tag = embedded[:, 0] if self.routes_by_tag else None  # (B, D)
        context = Context(mask, attention_mask=padding_mask(mask, embedded), tag=tag)
        result: StackResult = self.encoder(embedded, context, detail)
        return EncoderOutput(
            result.hidden,
            mask,
            tag,
            sum_aux(result.aux),
            [layer.stats for layer in result.aux],
            result.states,
            _maps(result, "self_attention"),
        )

    def start_cache(self, encoded: EncoderOutput, beam: int, max_length: int) -> DecoderCache:
        """Prepare step-by-step decoding.

        Args:
            encoded: B encoded sentences.
            beam: K, hypotheses of each sentence.
            max_length: the most steps that will be made.

        Returns:
            A cache at length 0. Cross-attention's keys and values are in it once per sentence.
        """
        context = _decoder_context(encoded)
        return self.decoder.start_cache(context, encoded.hidden, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Feed one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to sentence n // K.
            cache: advanced by one position.

        Returns:
            Logits (N, V).
        """
        embedded = self.target_embedding(tokens.view(-1, cache.beam))  # (B, K, D)
        return self._project(self.decoder.step(embedded, cache).flatten(0, 1))

    def moe_calls(self) -> list[MoeFeedForward]:
        """The sparse feed-forwards in the order of `ModelOutput.moe_stats`: once per call."""
        return [*self.encoder.moe_calls(), *self.decoder.moe_calls()]

    def _project(self, hidden: Tensor) -> Tensor:
        logits: Tensor
        if self.output is None:
            logits = self.target_embedding(hidden, project=True)
        else:
            logits = self.output(hidden)
        return logits


def _layer_outputs(encoded: EncoderOutput, decoded: StackResult) -> LayerOutputs:
    return LayerOutputs(
        encoder=encoded.states,
        decoder=decoded.states,
        encoder_attention=encoded.attention,
        decoder_attention=_maps(decoded, "self_attention"),
        cross_attention=_maps(decoded, "cross_attention"),
    )


def _decoder_context(encoded: EncoderOutput) -> Context:
    mask = padding_mask(encoded.mask, encoded.hidden)
    return Context(source=encoded.hidden, source_mask=mask, tag=encoded.tag)


def _maps(result: StackResult, name: str) -> tuple[Tensor, ...]:
    """Those of one sub-layer, of all layers that have it."""
    return tuple(maps[name] for maps in result.maps if name in maps)


def _select_rows(hidden: Tensor, select: Tensor, num_selected: int | None) -> Tensor:
    """Rows of hidden (B, T, D) where `select` (B, T) is True, as (N, D)."""
    flat, chosen = hidden.flatten(0, 1), select.flatten()
    if num_selected is None:
        rows = chosen.nonzero().squeeze(1)
    else:
        rows = torch.nonzero_static(chosen, size=num_selected).squeeze(1)
    return flat if len(rows) == len(flat) else flat.index_select(0, rows)
