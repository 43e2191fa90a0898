"""The decoder-only Transformer: a language model, dense or sparse.

It implements what the search needs of a model (`ds_seq.search.beam_search.Decodable`): there is
nothing to encode, and a prompt is the beginning of each hypothesis.

Shapes: B batch, T length, K beam width, N rows, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ds_seq.data.text_batch import TextInputs
from ds_seq.models.cache import DecoderCache
from ds_seq.models.language_model import no_source, scores_of, text_output
from ds_seq.models.output import EncoderOutput, LayerOutputs, ModelOutput, StackResult
from ds_seq.models.stack import Stack, layer_maps, real_rows, sum_losses
from ds_seq.modules.body import Context
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.modules.adapter import AdapterChoice
    from ds_seq.modules.adaptive import AdaptiveEmbedding, AdaptiveSoftmax


class DecoderOnlyTransformer(nn.Module):
    """A stack of causal layers, and the embedding and projection around it.

    Args:
        decoder: stack that transforms embedded tokens; each sees itself and those before it.
        target_embedding: embedding of tokens.
        output: projection to the vocabulary (D -> V), or adaptive softmax, whose logits are
            log-probabilities; None to use the embedding (tied).
        max_positions: longest text that the model is meant for, in tokens.

    Attributes:
        adapters: how the adapter of each text is chosen; None for a model without adapters.
    """

    def __init__(
        self,
        decoder: Stack,
        target_embedding: TokenEmbedding | AdaptiveEmbedding,
        output: nn.Linear | AdaptiveSoftmax | None,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.target_embedding = target_embedding
        self.output = output
        self.max_positions = max_positions
        self.adapters: AdapterChoice | None = None

    def forward(self, inputs: TextInputs, capture: Capture = "none") -> ModelOutput:
        """Score each token of a text given those before it.

        Args:
            inputs: the text. Only the rows of `target_mask` are scored: the projection to the
                vocabulary skips all others.
            capture: which outputs of the layers to return.

        Returns:
            Logits (N, V) of the scored rows in row-major order, losses and statistics of sparse
            layers, and the captured outputs of the layers. Adaptive softmax that is given labels
            returns their log-probabilities (N,) instead of logits.
        """
        scored = real_rows(inputs.target_mask, inputs.num_targets)
        is_all = inputs.token_mask is inputs.target_mask
        rows = scored if is_all else real_rows(inputs.token_mask, inputs.num_tokens)
        result = self.states_of(inputs.tokens, inputs.token_mask, capture, rows)
        flat = result.hidden.flatten(0, 1)
        hidden = flat if len(scored) == len(flat) else flat.index_select(0, scored)
        layers = None
        if capture != "none":
            maps = layer_maps(result, "self_attention")
            layers = LayerOutputs((), result.states, decoder_attention=maps)
        scored_output = text_output(hidden, inputs, self.target_embedding, self.output, layers)
        return scored_output._replace(
            router_losses=sum_losses(layer.losses for layer in result.aux),
            moe_stats=[layer.stats for layer in result.aux],
        )

    def states_of(
        self, tokens: Tensor, mask: Tensor, capture: Capture, rows: Tensor
    ) -> StackResult:
        """Return what the stack makes of a text.

        Args:
            tokens: (B, T).
            mask: (B, T) bool, True at real tokens.
            capture: which outputs of the layers to return.
            rows: the real tokens of the mask, see `real_rows`.
        """
        context = Context(
            token_mask=mask,
            tokens=tokens,
            token_rows=rows,
            adapters=None if self.adapters is None else self.adapters.rows(tokens),
        )
        result: StackResult = self.decoder(self.target_embedding(tokens), context, capture)
        return result

    def encode(self, source: Tensor, source_mask: Tensor) -> EncoderOutput:
        """Return what stands for the encoded source in a search, see `no_source`."""
        adapters = None if self.adapters is None else self.adapters.rows(source)
        return no_source(self.target_embedding, source, source_mask, adapters)

    def start_cache(self, encoded: EncoderOutput, beam: int, max_length: int) -> DecoderCache:
        """Prepare step-by-step decoding; see `Seq2SeqTransformer.start_cache`."""
        context = Context(adapters=encoded.adapters)
        return self.decoder.start_cache(context, encoded.hidden, beam, max_length)

    def decode_step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Append one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to text n // K.
            cache: state of the search; advanced by one position.

        Returns:
            Logits (N, V).
        """
        tokens = cache.distinct(tokens)  # (B, K) or (B, 1)
        cache.context = cache.context._replace(tokens=tokens)
        embedded = self.target_embedding(tokens)  # (B, K, D) or (B, 1, D)
        hidden = self.decoder.step(embedded, cache).flatten(0, 1)
        return cache.of_each(scores_of(hidden, self.target_embedding, self.output))

    def moe_calls(self) -> list[MoeFeedForward]:
        """Return the sparse feed-forwards in the order of `ModelOutput.moe_stats`, one per call."""
        return self.decoder.moe_calls()
