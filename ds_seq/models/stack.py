"""Encoder and decoder: positions, dropout, a stack of layers, and the last norm.

Losses of sparse layers are collected call by call from return values, and what decoding remembers
is kept call by call as well, so the same layer may stand in a stack more than once. The same goes
for hidden states and attention maps, where they are asked for: return values alone pass activation
checkpointing and ZeRO-3 unharmed.

Shapes: B batch, S source length, T target length, K beam width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ds_seq.models.cache import DecoderCache, LayerPast
from ds_seq.models.layers import TransformerDecoderLayer
from ds_seq.models.output import LayerResult, StackResult
from ds_seq.modules.attention import KeyValue
from ds_seq.modules.dropout import dropout
from ds_seq.modules.kv_cache import BeamPaths, KeyValueBuffer
from ds_seq.moe.output import MoeAux
from ds_seq.names import Capture


class _Stack(nn.Module):
    """What encoder and decoder have in common.

    Args:
        layers: in the order in which they are called.
        positions: adds position rows to the embedded tokens; None when the layers see to it.
        final_norm: normalises the output (pre-norm stacks), or None (post-norm stacks).
        dropout: on the embedded tokens.
        checkpointing: recompute each layer in the backward pass instead of keeping activations.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        positions: nn.Module | None,
        final_norm: nn.LayerNorm | None,
        dropout: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.positions = positions
        self.final_norm = final_norm
        self.dropout = dropout
        self.checkpointing = checkpointing

    def _start(self, x: Tensor, first_position: int, length: int) -> Tensor:
        if self.positions is not None:
            x = self.positions(x, first_position, length)
        return dropout(x, self.dropout, self.training)

    def _run(self, x: Tensor, capture: Capture, *inputs: Tensor | None) -> StackResult:
        """Call every layer on x (B, T, D) and the inputs that all layers share."""
        recompute = self.checkpointing and torch.is_grad_enabled()
        with_maps = capture == "attention"
        collected: list[MoeAux] = []
        states: list[Tensor] = []
        maps: list[tuple[Tensor, ...]] = []
        for layer in self.layers:
            result: LayerResult
            if recompute:
                result = checkpoint(layer, x, *inputs, use_reentrant=False, with_maps=with_maps)
            else:
                result = layer(x, *inputs, with_maps=with_maps)
            x = result.hidden
            if result.aux is not None:
                collected.append(result.aux)
            if capture != "none":
                states.append(x)
            if with_maps:
                maps.append(result.maps)
        return StackResult(self._finish(x), collected, tuple(states), tuple(maps))

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.final_norm is None else self.final_norm(x)


class TransformerEncoder(_Stack):
    """A stack of `TransformerEncoderLayer`."""

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        token_mask: Tensor | None,
        tag: Tensor | None = None,
        capture: Capture = "none",
    ) -> StackResult:
        """Encode embedded tokens.

        Args:
            x: (B, S, D).
            attention_mask: (B, 1, 1, S) added to scores, or None.
            token_mask: (B, S) bool, True at real tokens, or None when all are real.
            tag: (B, D) embedding of each sentence's language tag, or None.
            capture: what is wanted of each layer; its map is that of self-attention.
        """
        return self._run(self._start(x, 0, x.size(1)), capture, attention_mask, token_mask, tag)


class TransformerDecoder(_Stack):
    """A stack of `TransformerDecoderLayer`."""

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        source_mask: Tensor | None,
        token_mask: Tensor | None,
        tag: Tensor | None = None,
        capture: Capture = "none",
    ) -> StackResult:
        """Decode a whole embedded target at once.

        Args:
            x: (B, T, D).
            source: encoded source (B, S, D).
            source_mask: (B, 1, 1, S) added to scores, or None.
            token_mask: (B, T) bool, True at real tokens, or None when all are real.
            tag: (B, D) embedding of each sentence's language tag, or None.
            capture: what is wanted of each layer; its maps are those of self- and cross-attention.
        """
        x = self._start(x, 0, x.size(1))
        return self._run(x, capture, source, source_mask, token_mask, tag)

    def start_cache(
        self,
        source: Tensor,
        source_mask: Tensor | None,
        tag: Tensor | None,
        beam: int,
        max_length: int,
    ) -> DecoderCache:
        """An empty cache for `beam` hypotheses of each encoded source (B, S, D), tag (B, D)."""
        paths = BeamPaths(source.size(0), beam, max_length, source)
        pasts = []
        for layer in self.layers:
            assert isinstance(layer, TransformerDecoderLayer)
            # contiguous once, or the matrix products of every step would copy
            memory = (x.contiguous() for x in layer.cross_attention.memory(source))
            pasts.append(LayerPast(KeyValueBuffer(paths), KeyValue(*memory)))
        return DecoderCache(pasts, source_mask, paths, tag)

    def step(self, x: Tensor, cache: DecoderCache) -> Tensor:
        """Decode the next embedded token (B, K, D) of every hypothesis; returns (B, K, D)."""
        cache.advance()
        x = self._start(x, cache.length - 1, 1)
        for layer, past in zip(self.layers, cache.pasts, strict=True):
            x = layer(x, None, cache.source_mask, None, cache.tag, past=past).hidden
        return self._finish(x)
