"""An encoder-decoder of gated convolutions (Gehring et al., 2017, https://arxiv.org/abs/1705.03122).

Each layer is a convolution into a gated linear unit, added to its input and multiplied by sqrt(0.5)
to keep the variance. Each decoder layer attends to the source: the scores are products with the
output of the encoder, and what is taken is that output plus the embeddings of the source.

Tensors are batch-first, padding is on the right, masks are True at real tokens.

Shapes: B batch, S source length, T target length, K beam width, N rows, D width of embeddings, C
channels of a layer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.output import LayerOutputs, ModelOutput
from ds_seq.models.stack import real_rows
from ds_seq.modules.embedding import TokenEmbedding, token_scores
from ds_seq.modules.kv_cache import is_identity
from ds_seq.modules.positions import LearnedPositions
from ds_seq.modules.residual import dropout
from ds_seq.names import Capture

_HALF = math.sqrt(0.5)  # of a sum of two terms of equal variance


class Source(NamedTuple):
    """The encoded source."""

    hidden: Tensor
    """(B, S, D), with which decoder layers compare their states."""
    values: Tensor
    """(B, S, D), `hidden` and the embeddings, which they take."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""

    def select(self, sentences: Tensor) -> Source:
        """Return the sentences (B',) int64."""
        return Source(*(each.index_select(0, sentences) for each in self))


class _ScaledGradient(torch.autograd.Function):
    """Returns its input, and multiplies the gradient by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class GatedConvolution(nn.Module):
    """A convolution into a gated linear unit, as one linear map of the tokens under its kernel.

    Args:
        map: maps the tokens under the kernel, one after the other, to values and gates.
        size: number of tokens under the kernel.
    """

    def __init__(self, map: nn.Module, size: int) -> None:
        super().__init__()
        self.map, self.size = map, size

    def forward(self, x: Tensor, left: int) -> Tensor:
        """Convolve x (B, T, C), 0 outside the text, to (B, T, C').

        Args:
            x: channels, 0 where there is no token.
            left: how many tokens under the kernel come before its own.
        """
        length = x.size(1)
        padded = F.pad(x, (0, 0, left, self.size - 1 - left))
        under = torch.cat([padded[:, k : k + length] for k in range(self.size)], -1)
        return self.step(under)

    def step(self, under: Tensor) -> Tensor:
        """Return the units of the tokens under a kernel (..., size C)."""
        units: Tensor = self.map(under)
        return F.glu(units, -1)


class SourceAttention(nn.Module):
    """Attention of a decoder layer to the source, with one head.

    Args:
        query: maps the layer's channels to the width of embeddings.
        output: maps back.
    """

    def __init__(self, query: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.query, self.output = query, output

    def forward(self, x: Tensor, embedded: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """Attend to the source.

        The result is multiplied by the root of the number of source tokens, because a mean of as
        many values has a variance that is smaller by their number.

        Args:
            x: channels (B, T, C), of T tokens or of K hypotheses.
            embedded: embeddings of the same tokens (B, T, D).
            source: the encoded source.

        Returns:
            (B, T, C), and the weights (B, T, S) in float32 or wider.
        """
        query = (self.query(x) + embedded) * _HALF
        scores = query @ source.hidden.transpose(1, 2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.masked_fill(~source.mask[:, None], -math.inf).softmax(-1)
        taken = weights.to(x.dtype) @ source.values
        taken = taken * source.mask.sum(1).to(x.dtype).sqrt()[:, None, None]
        return (self.output(taken) + x) * _HALF, weights


class GatedLayer(nn.Module):
    """A gated convolution with its residual, and in a decoder with attention to the source.

    Args:
        convolution: the convolution.
        residual: maps what is added to the width of the output; None if it has it.
        attention: attention to the source; None in an encoder or a language model.
        back: whose input is added: 1 for that of this layer, 2 for that of the one before it; 0
            for none.
    """

    def __init__(
        self,
        convolution: GatedConvolution,
        residual: nn.Module | None,
        attention: SourceAttention | None,
        back: int,
    ) -> None:
        super().__init__()
        self.convolution, self.residual, self.attention = convolution, residual, attention
        self.back = back

    def forward(
        self, inputs: Sequence[Tensor], units: Tensor, embedded: Tensor, source: Source | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output, given what its convolution has made of its input.

        Args:
            inputs: inputs (B, T, C) of the layers up to this one, of which the last `back` matter.
            units: output of the convolution (B, T, C').
            embedded: embeddings of the tokens (B, T, D).
            source: the encoded source, in a decoder.

        Returns:
            (B, T, C'), and the weights of the attention (B, T, S), if there is one.
        """
        weights = None
        if self.attention is not None:
            units, weights = self.attention(units, embedded, source)
        if not self.back:
            return units, weights
        added = inputs[-self.back]
        added = added if self.residual is None else self.residual(added)
        return (units + added) * _HALF, weights


class GatedStack(nn.Module):
    """Positions, a map to the channels of the first layer, layers, and a map of the last one's.

    Args:
        positions: adds positions to embeddings; None for a stack without.
        input: maps embeddings to the channels of the first layer.
        layers: the layers.
        output: maps the channels of the last layer to the width of the output; None for none.
        causal: whether position t takes from positions <= t only.
        dropout: dropout on embeddings and on the input of each convolution.
    """

    def __init__(
        self,
        positions: LearnedPositions | None,
        input: nn.Module,
        layers: Sequence[GatedLayer],
        output: nn.Module | None,
        causal: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.positions, self.input, self.output = positions, input, output
        self.layers = nn.ModuleList(layers)
        self.causal, self.dropout = causal, dropout
        self._reach = max(1, *(layer.back for layer in layers))  # how many inputs are kept

    def forward(
        self, x: Tensor, mask: Tensor | None, source: Source | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Call all layers on whole sequences.

        Args:
            x: embedded tokens (B, T, D).
            mask: (B, T) bool, True at real tokens, in an encoder; a decoder needs none, because
                padding is on the right.
            source: the encoded source, in a decoder.

        Returns:
            The output (B, T, D'), the embeddings with their positions (B, T, D), and the weights of
            each layer's attention (B, T, S).
        """
        embedded = dropout(self._placed(x, 0), self.dropout, self.training)
        inputs, maps = [self.input(embedded)], []
        for layer in self._layers():
            inner = inputs[-1] if mask is None else inputs[-1].masked_fill(~mask[..., None], 0.0)
            inner = dropout(inner, self.dropout, self.training)
            size = layer.convolution.size
            units = layer.convolution(inner, size - 1 if self.causal else (size - 1) // 2)
            x, weights = layer(inputs, units, embedded, source)
            inputs = [*inputs, x][-self._reach :]
            if weights is not None:
                maps.append(weights)
        return self._mapped(inputs[-1]), embedded, maps

    def step(self, x: Tensor, cache: ConvolutionalCache) -> Tensor:
        """Call all layers on the newest tokens of all hypotheses, embedded (N, D)."""
        embedded = self._placed(x[:, None], cache.length).view(-1, cache.beam, x.size(-1))
        cache.length += 1
        inputs = [self.input(embedded)]
        for number, layer in enumerate(self._layers()):
            under = cache.append(number, inputs[-1].flatten(0, 1), layer.convolution.size)
            units = layer.convolution.step(under).unflatten(0, (-1, cache.beam))
            hidden, _ = layer(inputs, units, embedded, cache.source)
            inputs = [*inputs, hidden][-self._reach :]
        return self._mapped(inputs[-1].flatten(0, 1))

    def _placed(self, x: Tensor, start: int) -> Tensor:
        """Add positions from `start` on to embedded tokens (B, T, D)."""
        return x if self.positions is None else self.positions(x, start, x.size(1))

    def _mapped(self, x: Tensor) -> Tensor:
        mapped: Tensor = x if self.output is None else self.output(x)
        return mapped

    def _layers(self) -> Sequence[GatedLayer]:
        return cast(Sequence[GatedLayer], self.layers)


class ConvolutionalCache:
    """What step-by-step decoding keeps: the tokens under each kernel, the source per sentence.

    Args:
        source: the source of B sentences; None for texts without.
        num_sentences: B.
        beam: number of hypotheses per sentence, K.
    """

    def __init__(self, source: Source | None, num_sentences: int, beam: int) -> None:
        self.source, self.beam, self.length = source, beam, 0
        self._num_sentences = num_sentences
        self._under: list[Tensor] = []  # of each layer (N, size, C)

    def append(self, layer: int, x: Tensor, size: int) -> Tensor:
        """Add a layer's input x (N, C); return the newest `size` of it, (N, size C)."""
        if layer == len(self._under):
            self._under.append(x.new_zeros(len(x), size, x.size(1)))
        under = torch.cat([self._under[layer][:, 1:], x[:, None]], 1)
        self._under[layer] = under
        return under.flatten(1)

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]`, (N,) int64, of the same sentence."""
        if not is_identity(rows, self._num_sentences * self.beam):
            self._under = [each.index_select(0, rows) for each in self._under]

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep only the sentences `kept`, (B',) int64, with all their hypotheses."""
        if is_identity(kept, self._num_sentences):
            return
        self._num_sentences = len(kept)
        rows = (kept[:, None] * self.beam + torch.arange(self.beam, device=kept.device)).flatten()
        self._under = [each.index_select(0, rows) for each in self._under]
        if self.source is not None:
            self.source = self.source.select(kept)


class ConvolutionalModel(nn.Module):
    """Encoder, decoder, and the embeddings and projection around them.

    Args:
        encoder: layers that read the source.
        decoder: layers that read the target and the encoded source.
        target_embedding: embedding of target tokens.
        source_embedding: embedding of source tokens; None to share `target_embedding`.
        output: projection to the vocabulary; None to use `target_embedding` (tied).
        max_positions: longest sequence, in tokens.
    """

    def __init__(
        self,
        encoder: GatedStack,
        decoder: GatedStack,
        target_embedding: TokenEmbedding,
        source_embedding: TokenEmbedding | None,
        output: nn.Module | None,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.target_embedding, self.source_embedding = target_embedding, source_embedding
        self.output = output
        self.max_positions = max_positions

    def forward(self, inputs: Seq2SeqInputs, capture: Capture = "none") -> ModelOutput:
        """Score a target given its source.

        Args:
            inputs: source and target. Only the rows of `target_mask` are scored.
            capture: `attention` returns the maps of the attention to the source; hidden states of
                layers are not returned.

        Returns:
            Logits (N, V) of the scored rows in row-major order.
        """
        source = self.encode(inputs.source, inputs.source_mask)
        hidden, _, maps = self.decoder(self.target_embedding(inputs.target), None, source)
        rows = real_rows(inputs.target_mask, inputs.num_targets)
        layers = None
        if capture != "none":
            shown = maps if capture == "attention" else []
            layers = LayerOutputs((), (), cross_attention=tuple(each[:, None] for each in shown))
        scored = hidden.flatten(0, 1).index_select(0, rows)
        return ModelOutput(self._project(scored), {}, [], layers)

    def encode(self, source: Tensor, source_mask: Tensor) -> Source:
        """Encode source tokens (B, S); the mask is True at real tokens."""
        table = self.target_embedding if self.source_embedding is None else self.source_embedding
        hidden, embedded, _ = self.encoder(table(source), source_mask, None)
        # each decoder layer reads it twice, so that it would get the sum of as many gradients
        hidden = _ScaledGradient.apply(hidden, 0.5 / len(self.decoder.layers))
        return Source(hidden, (hidden + embedded) * _HALF, source_mask)

    def start_cache(self, encoded: Source, beam: int, max_length: int) -> ConvolutionalCache:
        """Prepare step-by-step decoding; the cache does not grow with the length.

        Args:
            encoded: B encoded sentences.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps; not used.
        """
        return ConvolutionalCache(encoded, len(encoded.mask), beam)

    def decode_step(self, tokens: Tensor, cache: ConvolutionalCache) -> Tensor:
        """Append one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to sentence n // K.
            cache: state of the search; advanced by one position.

        Returns:
            Logits (N, V).
        """
        return self._project(self.decoder.step(self.target_embedding(tokens), cache))

    def _project(self, hidden: Tensor) -> Tensor:
        hidden = dropout(hidden, self.decoder.dropout, self.training)
        return token_scores(hidden, self.target_embedding, self.output)
