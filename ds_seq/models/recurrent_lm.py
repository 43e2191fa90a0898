"""A language model of LSTM layers.

Shapes: B batch, T length, K beam width, N rows, H width of the states, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.data.text_batch import TextInputs
from ds_seq.models.language_model import no_source, scores_of, text_output
from ds_seq.models.output import EncoderOutput, LayerOutputs, ModelOutput
from ds_seq.models.recurrent import RecurrentCache, projected
from ds_seq.models.stack import real_rows
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.lstm import Lstm, LstmState
from ds_seq.names import Capture

if TYPE_CHECKING:
    from ds_seq.modules.adaptive import AdaptiveSoftmax


class RecurrentLanguageModel(nn.Module):
    """LSTM layers, and the embedding and projection around them.

    Padding is on the right, so no state before it depends on it.

    Args:
        decoder: layers that read a text from its beginning.
        target_embedding: embedding of tokens.
        projection: maps states to the width of the output table; None if they have it.
        output: projection to the vocabulary, or adaptive softmax, whose logits are
            log-probabilities; None to use the embedding (tied).
        max_positions: longest text that the model is meant for, in tokens.
        dropout: dropout on embeddings, and on the output of the layers.
    """

    def __init__(
        self,
        decoder: Lstm,
        target_embedding: TokenEmbedding,
        projection: nn.Module | None,
        output: nn.Linear | AdaptiveSoftmax | None,
        max_positions: int,
        dropout: tuple[float, float],
    ) -> None:
        super().__init__()
        self.decoder, self.target_embedding = decoder, target_embedding
        self.projection, self.output = projection, output
        self.max_positions = max_positions
        self.dropout_in, self.dropout_out = dropout

    def forward(self, inputs: TextInputs, capture: Capture = "none") -> ModelOutput:
        """Score each token of a text given those before it.

        Args:
            inputs: the text. Only the rows of `target_mask` are scored.
            capture: the layers return neither hidden states nor attention maps.

        Returns:
            Logits (N, V) of the scored rows in row-major order; adaptive softmax that is given
            labels returns their log-probabilities (N,) instead.
        """
        hidden, _ = self.decoder(self._embed(inputs.tokens))
        rows = real_rows(inputs.target_mask, inputs.num_targets)
        scored = hidden.flatten(0, 1).index_select(0, rows)
        layers = None if capture == "none" else LayerOutputs((), ())
        scored = self._project(scored)
        return text_output(scored, inputs, self.target_embedding, self.output, layers)

    def encode(self, source: Tensor, source_mask: Tensor) -> EncoderOutput:
        """Return what stands for the encoded source in a search, see `no_source`."""
        return no_source(self.target_embedding, source, source_mask)

    def start_cache(
        self, encoded: EncoderOutput, beam: int, max_length: int
    ) -> RecurrentCache[LstmState]:
        """Prepare step-by-step decoding; the cache does not grow with the length.

        Args:
            encoded: what `encode` has returned for B texts.
            beam: number of hypotheses per text, K.
            max_length: largest number of steps; not used.
        """
        size = self.decoder.num_layers, len(encoded.hidden) * beam, self.decoder.hidden_size
        zeros = encoded.hidden.new_zeros(size)
        return RecurrentCache(LstmState(zeros, zeros), None, beam)

    def decode_step(self, tokens: Tensor, cache: RecurrentCache[LstmState]) -> Tensor:
        """Append one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to text n // K.
            cache: state of the search; advanced by one position.

        Returns:
            Logits (N, V).
        """
        hidden, cache.state = self.decoder(self._embed(tokens[:, None]), start=cache.state)
        return scores_of(self._project(hidden[:, 0]), self.target_embedding, self.output)

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.dropout(self.target_embedding(tokens), self.dropout_in, self.training)

    def _project(self, hidden: Tensor) -> Tensor:
        """Map states (N, H) to what is scored."""
        hidden = F.dropout(hidden, self.dropout_out, self.training)
        return projected(hidden, self.projection, self.dropout_out)
