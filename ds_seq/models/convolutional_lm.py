"""A language model of gated convolutions (Dauphin et al., 2017, https://arxiv.org/abs/1612.08083).

Its layers are those of `ds_seq.models.convolutional` without attention and without positions.

Shapes: B batch, T length, K beam width, N rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ds_seq.data.text_batch import TextInputs
from ds_seq.models.convolutional import ConvolutionalCache, GatedStack
from ds_seq.models.language_model import is_adaptive, no_source, scores_of, text_output
from ds_seq.models.output import EncoderOutput, LayerOutputs, ModelOutput
from ds_seq.models.stack import real_rows
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.residual import dropout
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.modules.adaptive import AdaptiveSoftmax


class ConvolutionalLanguageModel(nn.Module):
    """Gated convolutions, and the embedding and projection around them.

    Padding is on the right, so no token before it depends on it.

    Args:
        decoder: causal layers.
        target_embedding: embedding of tokens.
        output: projection to the vocabulary, or adaptive softmax, whose logits are
            log-probabilities; None to use the embedding (tied).
        max_positions: longest text that the model is meant for, in tokens.
    """

    def __init__(
        self,
        decoder: GatedStack,
        target_embedding: TokenEmbedding,
        output: nn.Linear | AdaptiveSoftmax | None,
        max_positions: int,
    ) -> None:
        super().__init__()
        self.decoder, self.target_embedding = decoder, target_embedding
        self.output = output
        self.max_positions = max_positions
        # adaptive softmax has a dropout of its own
        self._dropout = 0.0 if is_adaptive(output) else decoder.dropout

    def forward(self, inputs: TextInputs, capture: Capture = "none") -> ModelOutput:
        """Score each token of a text given those before it.

        Args:
            inputs: the text. Only the rows of `target_mask` are scored.
            capture: the layers return neither hidden states nor attention maps.

        Returns:
            Logits (N, V) of the scored rows in row-major order; adaptive softmax that is given
            labels returns their log-probabilities (N,) instead.
        """
        hidden, _, _ = self.decoder(self.target_embedding(inputs.tokens), None, None)
        rows = real_rows(inputs.target_mask, inputs.num_targets)
        scored = dropout(hidden.flatten(0, 1).index_select(0, rows), self._dropout, self.training)
        layers = None if capture == "none" else LayerOutputs((), ())
        return text_output(scored, inputs, self.target_embedding, self.output, layers)

    def encode(self, source: Tensor, source_mask: Tensor) -> EncoderOutput:
        """Return what stands for the encoded source in a search, see `no_source`."""
        return no_source(self.target_embedding, source, source_mask)

    def start_cache(self, encoded: EncoderOutput, beam: int, max_length: int) -> ConvolutionalCache:
        """Prepare step-by-step decoding; the cache does not grow with the length.

        Args:
            encoded: what `encode` has returned for B texts.
            beam: number of hypotheses per text, K.
            max_length: largest number of steps; not used.
        """
        return ConvolutionalCache(None, len(encoded.mask), beam)

    def decode_step(self, tokens: Tensor, cache: ConvolutionalCache) -> Tensor:
        """Append one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to text n // K.
            cache: state of the search; advanced by one position.

        Returns:
            Logits (N, V).
        """
        hidden = self.decoder.step(self.target_embedding(tokens), cache)
        return scores_of(hidden, self.target_embedding, self.output)
