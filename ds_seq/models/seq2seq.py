"""The sequence-to-sequence Transformer (Vaswani et al., 2017), dense or sparse.

Tensors are batch-first, padding is on the right, masks are True at real tokens.

Shapes: B batch, S source length, T target length, K beam width, N rows, D model width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.cache import DecoderCache
from ds_seq.models.output import EncoderOutput, LayerOutputs, ModelOutput, StackResult
from ds_seq.models.stack import Stack
from ds_seq.modules.attention import padding_mask
from ds_seq.modules.body import Context
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import Capture


class Seq2SeqTransformer(nn.Module):
    """Encoder, decoder, and the embeddings and projection around them.

    Args:
        encoder: turns embedded source tokens into hidden states.
        decoder: turns embedded target tokens and hidden states into hidden states.
        target_embedding: looks target tokens up.
        source_embedding: looks source tokens up; None: `target_embedding` does.
        output: scores hidden states (D -> V); None: `target_embedding` does (tied).
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
        max_positions: int,
        routes_by_tag: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target_embedding = target_embedding
        self.source_embedding = source_embedding
        self.output = output
        self.max_positions = max_positions
        self.routes_by_tag = routes_by_tag

    def forward(self, inputs: Seq2SeqInputs, capture: Capture = "none") -> ModelOutput:
        """Score a target given its source.

        Args:
            inputs: source and target. Only the rows of its `target_mask` are scored: the projection
                to the vocabulary, the dearest part of the model, skips all others.
            capture: what is wanted of the layers, of all rows; attention maps cost the fused
                kernels.

        Returns:
            Logits (N, V) in row-major order of the rows that are scored, what sparse layers add,
            and what layers show.
        """
        encoded = self.encode(inputs.source, inputs.source_mask, capture)
        decoded: StackResult = self.decoder(
            self.target_embedding(inputs.target),
            _decoder_context(encoded)._replace(token_mask=inputs.target_mask),
            capture,
        )
        decoder_losses = _sum_losses(layer.losses for layer in decoded.aux)
        hidden = _select_rows(decoded.hidden, inputs.target_mask, inputs.num_targets)
        return ModelOutput(
            self._project(hidden),
            _sum_losses([encoded.router_losses, decoder_losses]),
            encoded.moe_stats + [layer.stats for layer in decoded.aux],
            None if capture == "none" else _layer_outputs(encoded, decoded),
        )

    def encode(
        self, source: Tensor, source_mask: Tensor, capture: Capture = "none"
    ) -> EncoderOutput:
        """Encode a source.

        Args:
            source: tokens (B, S).
            source_mask: (B, S) bool, True at real tokens.
            capture: what is wanted of the layers.
        """
        embedding = self.source_embedding
        embedded = self.target_embedding(source) if embedding is None else embedding(source)
        tag = embedded[:, 0] if self.routes_by_tag else None  # (B, D)
        attention_mask = padding_mask(source_mask, embedded)
        context = Context(source_mask, attention_mask=attention_mask, tag=tag)
        result: StackResult = self.encoder(embedded, context, capture)
        return EncoderOutput(
            result.hidden,
            source_mask,
            tag,
            _sum_losses(layer.losses for layer in result.aux),
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


def _sum_losses(losses: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Add losses of the same name."""
    total: dict[str, Tensor] = {}
    for by_name in losses:
        for name, loss in by_name.items():
            total[name] = total[name] + loss if name in total else loss
    return total


def _layer_outputs(encoded: EncoderOutput, decoded: StackResult) -> LayerOutputs:
    return LayerOutputs(
        encoder=encoded.states,
        decoder=decoded.states,
        encoder_attention=encoded.attention,
        decoder_attention=_maps(decoded, "self_attention"),
        cross_attention=_maps(decoded, "cross_attention"),
    )


def _select_rows(hidden: Tensor, mask: Tensor, count: int) -> Tensor:
    """The `count` rows of hidden (B, T, D) where the mask (B, T) is True, as (N, D)."""
    flat = hidden.flatten(0, 1)
    if count == len(flat):
        return flat
    # on a GPU, counting would wait for the device
    rows = torch.nonzero_static(mask.flatten(), size=count).squeeze(1)
    return flat.index_select(0, rows)


def _decoder_context(encoded: EncoderOutput) -> Context:
    mask = padding_mask(encoded.mask, encoded.hidden)
    return Context(source=encoded.hidden, source_mask=mask, tag=encoded.tag)


def _maps(result: StackResult, name: str) -> tuple[Tensor, ...]:
    """Those of one sub-layer, of all layers that have it."""
    return tuple(maps[name] for maps in result.maps if name in maps)
