"""The sequence-to-sequence Transformer (Vaswani et al., 2017), dense or sparse.

Tensors are batch-first, padding is on the right, masks are True at real tokens.

Shapes: B batch, S source length, T target length, K beam width, N rows, D model width,
V vocabulary, U some tokens of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.cache import DecoderCache
from ds_seq.models.native_decoder import NativeEncoder, NativeStep
from ds_seq.models.output import (
    EncoderOutput,
    LayerOutputs,
    ModelOutput,
    StackResult,
)
from ds_seq.models.stack import Stack, layer_maps, real_rows, sum_losses
from ds_seq.modules.body import Context
from ds_seq.modules.embedding import TokenEmbedding, token_scorer, token_scores
from ds_seq.modules.native_cache import NativeCache
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.models.encoder_input import LanguageModelInput
    from ds_seq.modules.adapter import AdapterChoice
    from ds_seq.modules.unpadded_attention import Lengths


_MASK_MULTIPLE = 8  # of the strides of masks in torch's memory-efficient attention


class Seq2SeqTransformer(nn.Module):
    """Encoder, decoder, and the embeddings and projection around them.

    Args:
        encoder: stack that transforms embedded source tokens.
        decoder: stack that transforms embedded target tokens, given the encoded source.
        target_embedding: embedding of target tokens.
        source_embedding: embedding of source tokens; None to share `target_embedding`.
        output: projection to the vocabulary (D -> V); None to use `target_embedding` (tied).
        max_positions: longest sequence that the model is meant for, in tokens.
        routes_by_tag: whether feed-forwards need the embedding of the source's language tag.
        markers: module that finds the sets of parameters of source tokens, if stacks have several.

    Attributes:
        adapters: how the adapter of each sentence is chosen; None for a model without adapters, and
            for one that passes through none of them.
        encoder_input: language model that embeds source tokens; None: an embedding does.
        expert_prior: prior of the experts of a mixture that learns one; else None.
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
        markers: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target_embedding = target_embedding
        self.source_embedding = source_embedding
        self.output = output
        self.max_positions = max_positions
        self._encoder_routes = bool(encoder.moe_calls())
        self.routes_by_tag = routes_by_tag
        self.markers = markers
        self.adapters: AdapterChoice | None = None
        self.encoder_input: LanguageModelInput | None = None
        self.expert_prior: nn.Module | None = None
        self._native: NativeStep | None = None
        self._native_encoder: NativeEncoder | None = None

    def pack(self, int8: bool = False) -> None:
        """Run stacks as one call into C from now on, where possible; see `pack_weights`."""
        step = None if int8 else NativeStep.of(self.decoder, self.target_embedding, self.output)
        self._native = step
        source = self.source_embedding or self.target_embedding
        is_plain = not (int8 or self.routes_by_tag) and self.encoder_input is None
        if is_plain and self.markers is None:
            self._native_encoder = NativeEncoder.of(self.encoder, source)

    def forward(self, inputs: Seq2SeqInputs, capture: Capture = "none") -> ModelOutput:
        """Score a target given its source.

        Args:
            inputs: source and target. Only the rows of `target_mask` are scored: the projection to
                the vocabulary, the most expensive part of the model, skips all others.
            capture: which outputs of the layers to return; attention maps rule out the fused
                kernels.

        Returns:
            Logits (N, V) of the scored rows in row-major order, losses and statistics of sparse
            layers, and the captured outputs of the layers.
        """
        source = inputs.source, inputs.source_mask
        encoded = self._encode(*source, capture, inputs.num_sources)
        rows = real_rows(inputs.target_mask, inputs.num_targets)
        context = self._decoder_context(encoded)._replace(
            token_mask=inputs.target_mask,
            token_rows=rows,
            tokens=inputs.target,
            ways=self.decoder.ways_of(encoded.sets, inputs.target.size(1)),
            source_lengths=lengths_of_mask(inputs.source_mask, encoded.hidden, inputs.num_sources),
        )
        decoded: StackResult = self.decoder(self.target_embedding(inputs.target), context, capture)
        decoder_losses = sum_losses(layer.losses for layer in decoded.aux)
        flat = decoded.hidden.flatten(0, 1)
        hidden = flat if len(rows) == len(flat) else flat.index_select(0, rows)
        return ModelOutput(
            token_scores(hidden, self.target_embedding, self.output),
            sum_losses([encoded.router_losses, decoder_losses]),
            encoded.moe_stats + [layer.stats for layer in decoded.aux],
            None if capture == "none" else _layer_outputs(encoded, decoded),
            expert_log_probs=self._expert_log_probs(encoded),
        )

    def encode(
        self,
        source: Tensor,
        source_mask: Tensor,
        capture: Capture = "none",
        num_tokens: int | None = None,
    ) -> EncoderOutput:
        """Encode a source.

        Args:
            source: tokens (B, S).
            source_mask: (B, S) bool, True at real tokens.
            capture: which outputs of the layers to return.
            num_tokens: number of real tokens, so that a GPU need not count them; None if unknown.
        """
        if self._native_encoder is not None and self.adapters is None and capture == "none":
            hidden = self._native_encoder.encode(source, source_mask)
            if hidden is not None:  # without losses and statistics, which a search does not use
                return EncoderOutput(hidden, source_mask, None, {}, [])
        return self._encode(source, source_mask, capture, num_tokens)

    def _encode(
        self, source: Tensor, source_mask: Tensor, capture: Capture, num_tokens: int | None
    ) -> EncoderOutput:
        embedded = self._embedded(source, source_mask, num_tokens)
        tag = embedded[:, 0] if self.routes_by_tag else None  # (B, D)
        attention_mask = padding_mask(source_mask, embedded)
        rows = real_rows(source_mask, num_tokens) if self._encoder_routes else None
        adapters = None if self.adapters is None else self.adapters.rows(source)
        context = Context(
            source_mask,
            attention_mask=attention_mask,
            tag=tag,
            tokens=source,
            token_rows=rows,
            adapters=adapters,
            lengths=lengths_of_mask(source_mask, embedded, num_tokens),
        )
        sets = None if self.markers is None else self.markers(source)  # (B, S)
        if sets is not None and self.encoder.find_ways is not None:
            context = context._replace(ways=self.encoder.find_ways(sets))
        result: StackResult = self.encoder(embedded, context, capture)
        return EncoderOutput(
            result.hidden,
            source_mask,
            tag,
            sum_losses(layer.losses for layer in result.aux),
            [layer.stats for layer in result.aux],
            result.states,
            layer_maps(result, "self_attention"),
            adapters,
            None if sets is None else sets[:, 0],
        )

    def start_cache(
        self, encoded: EncoderOutput, beam: int, max_length: int
    ) -> DecoderCache | NativeCache:
        """Prepare step-by-step decoding.

        Args:
            encoded: B encoded sentences.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps.

        Returns:
            A cache of length 0, with cross-attention's keys and values once per sentence.
        """
        if self._native is not None:
            native = self._native.start(encoded, beam, max_length)
            if native is not None:
                native.owner = self
                return native
        context = self._decoder_context(encoded)
        return self.decoder.start_cache(context, encoded.hidden, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: DecoderCache | NativeCache) -> Tensor:
        """Append one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to sentence n // K.
            cache: state of the search; advanced by one position.

        Returns:
            Logits (N, V).
        """
        native = None if self._native is None else self._native.scores
        return self.decode_with(tokens, cache, self._scores if native is None else native)

    def scorer(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that scores hidden states (..., D) against some tokens (U,)."""
        return token_scorer(tokens, self.target_embedding, self.output)

    def decode_with(
        self,
        tokens: Tensor,
        cache: DecoderCache | NativeCache,
        scores: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Do what `decode_step` does, with scores of hidden states by a function of `scorer`.

        Returns:
            Logits (N, U).
        """
        if isinstance(cache, NativeCache):
            return cache.of_each(scores(cache.step(tokens)))
        tokens = cache.distinct(tokens)  # (B, K) or (B, 1)
        cache.context = cache.context._replace(tokens=tokens)
        embedded = self.target_embedding(tokens)  # (B, K, D) or (B, 1, D)
        hidden = self.decoder.step(embedded, cache).flatten(0, 1)
        return cache.of_each(scores(hidden))

    def _scores(self, hidden: Tensor) -> Tensor:
        return token_scores(hidden, self.target_embedding, self.output)

    def moe_calls(self) -> list[MoeFeedForward]:
        """Return the sparse feed-forwards in the order of `ModelOutput.moe_stats`, one per call."""
        return [*self.encoder.moe_calls(), *self.decoder.moe_calls()]

    def _embedded(self, source: Tensor, mask: Tensor, num_tokens: int | None) -> Tensor:
        if self.encoder_input is not None:
            return self.encoder_input(source, mask, num_tokens)  # type: ignore[no-any-return]
        embedding = self.source_embedding
        table = self.target_embedding if embedding is None else embedding
        embedded: Tensor = table(source)
        return embedded

    def _expert_log_probs(self, encoded: EncoderOutput) -> Tensor | None:
        if self.expert_prior is None:
            return None
        return self.expert_prior(encoded.hidden, encoded.mask)  # type: ignore[no-any-return]

    def _decoder_context(self, encoded: EncoderOutput) -> Context:
        mask = padding_mask(encoded.mask, encoded.hidden)
        ways = self.decoder.ways_of(encoded.sets, encoded.hidden.size(1))
        return Context(
            source=encoded.hidden,
            source_mask=mask,
            tag=encoded.tag,
            sets=encoded.sets,
            source_ways=ways,
            adapters=encoded.adapters,
        )


def padding_mask(mask: Tensor, like: Tensor) -> Tensor | None:
    """Convert a token mask to a mask that is added to attention scores.

    Without padding, the result is None on a CPU. On a GPU, checking for padding would synchronize
    the device, so the mask is always made, with rows of the length in memory to which the fused
    kernel would otherwise copy it in every layer.

    Args:
        mask: (B, S) bool, True at real tokens.
        like: tensor of the result's dtype.

    Returns:
        (B, 1, 1, S) with 0 at real tokens and -inf at padding, or None.
    """
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    width = mask.size(1)
    if mask.is_cuda:
        width = -(-width // _MASK_MULTIPLE) * _MASK_MULTIPLE
    scores = like.new_zeros(mask.size(0), width)[:, : mask.size(1)]
    scores.masked_fill_(~mask, float("-inf"))
    return scores[:, None, None, :]


def _layer_outputs(encoded: EncoderOutput, decoded: StackResult) -> LayerOutputs:
    return LayerOutputs(
        encoder=encoded.states,
        decoder=decoded.states,
        encoder_attention=encoded.attention,
        decoder_attention=layer_maps(decoded, "self_attention"),
        cross_attention=layer_maps(decoded, "cross_attention"),
    )


def lengths_of_mask(mask: Tensor, like: Tensor, count: int | None) -> Lengths | None:
    """Return the real tokens of a mask (B, S) if attention should go by them, or None."""
    if count is None or not mask.is_cuda:
        return None
    # imported here because only GPUs need it
    from ds_seq.modules.unpadded_attention import lengths_of, serves

    return lengths_of(mask, count) if serves(mask, like) else None
