"""An encoder-decoder of LSTM layers, with or without attention (Luong et al., 2015).

Tensors are batch-first, padding is on the right, masks are True at real tokens.

Shapes: B batch, S source length, T target length, K beam width, N rows, E width of the encoded
source, H width of the decoder's states, L layers of the decoder, V vocabulary.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.output import LayerOutputs, ModelOutput
from ds_seq.models.stack import real_rows
from ds_seq.modules.embedding import TokenEmbedding, token_scores
from ds_seq.modules.kv_cache import is_identity
from ds_seq.modules.lstm import Lstm, LstmState
from ds_seq.modules.lstm_decoder import DecoderLstm, DecoderState, Memory, SourceMemory
from ds_seq.names import Capture

StateT = TypeVar("StateT", LstmState, DecoderState)


class RecurrentEncoding(NamedTuple):
    """The encoded source."""

    hidden: Tensor
    """(B, S, E)."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    finals: LstmState
    """(layers of the encoder, B, E) each: the last state of each layer."""


class RecurrentCache(Generic[StateT]):
    """What step-by-step decoding keeps: a state per hypothesis, the source per sentence.

    Args:
        state: the state of N = B K hypotheses.
        memory: the source of B sentences; None without attention or without a source.
        beam: number of hypotheses per sentence, K.
    """

    def __init__(self, state: StateT, memory: Memory | None, beam: int) -> None:
        self.state: StateT = state
        self.memory, self.beam = memory, beam

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]`, (N,) int64, of the same sentence."""
        if not is_identity(rows, self.state.num_rows):
            self.state = self.state.select(rows)

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep only the sentences `kept`, (B',) int64, with all their hypotheses."""
        if is_identity(kept, self.state.num_rows // self.beam):
            return
        rows = kept[:, None] * self.beam + torch.arange(self.beam, device=kept.device)
        self.state = self.state.select(rows.flatten())
        if self.memory is not None:
            self.memory = self.memory.select(kept)


class RecurrentDecoder(nn.Module):
    """The decoder's layers and what they read of the source.

    Args:
        source: maps the source to what the layers read.
        cells: the layers.
        projection: maps results to the width of the output table; None if they have it.
        dropout: dropout on projected results.
    """

    def __init__(
        self,
        source: SourceMemory,
        cells: DecoderLstm,
        projection: nn.Module | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.source, self.cells, self.projection = source, cells, projection
        self.dropout = dropout

    def project(self, hidden: Tensor) -> Tensor:
        """Map results (N, H) to the width of the output table."""
        return projected(hidden, self.projection, self.dropout)


def projected(hidden: Tensor, projection: nn.Module | None, dropout: float) -> Tensor:
    """Map states (N, H) to the width of the output table, and drop some if that is trained.

    Args:
        hidden: the states.
        projection: the map; None if they have this width.
        dropout: dropout on what it returns.
    """
    if projection is None:
        return hidden
    return F.dropout(projection(hidden), dropout, projection.training)


class RecurrentModel(nn.Module):
    """Encoder, decoder, and the embeddings and projection around them.

    Args:
        encoder: layers that read the source.
        decoder: layers that read the target and the encoded source.
        target_embedding: embedding of target tokens.
        source_embedding: embedding of source tokens; None to share `target_embedding`.
        output: projection to the vocabulary; None to use `target_embedding` (tied).
        max_positions: longest sequence that the model is meant for, in tokens.
        dropout: dropout on source embeddings, on the encoded source, and on target embeddings.
    """

    def __init__(
        self,
        encoder: Lstm,
        decoder: RecurrentDecoder,
        target_embedding: TokenEmbedding,
        source_embedding: TokenEmbedding | None,
        output: nn.Linear | None,
        max_positions: int,
        dropout: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.target_embedding, self.source_embedding = target_embedding, source_embedding
        self.output = output
        self.max_positions = max_positions
        self.dropout_source, self.dropout_encoded, self.dropout_target = dropout

    def forward(self, inputs: Seq2SeqInputs, capture: Capture = "none") -> ModelOutput:
        """Score a target given its source.

        Args:
            inputs: source and target. Only the rows of `target_mask` are scored.
            capture: `attention` returns the map of the only attention; no hidden states of layers
                are returned.

        Returns:
            Logits (N, V) of the scored rows in row-major order.
        """
        encoded = self.encode(inputs.source, inputs.source_mask)
        memory, state = self._read(encoded)
        embedded = self._embed_target(inputs.target)
        decoded = self.decoder.cells(embedded, state, memory)
        rows = real_rows(inputs.target_mask, inputs.num_targets)
        hidden = decoded.hidden.flatten(0, 1).index_select(0, rows)
        layers = None
        if capture != "none":
            shown = capture == "attention" and decoded.maps is not None
            layers = LayerOutputs((), (), cross_attention=(decoded.maps[:, None],) if shown else ())
        return ModelOutput(self._project(hidden), {}, [], layers)

    def encode(self, source: Tensor, source_mask: Tensor) -> RecurrentEncoding:
        """Encode source tokens (B, S); the mask is True at real tokens."""
        table = self.target_embedding if self.source_embedding is None else self.source_embedding
        embedded = F.dropout(table(source), self.dropout_source, self.training)
        hidden, finals = self.encoder(embedded, source_mask)
        hidden = F.dropout(hidden, self.dropout_encoded, self.training)
        return RecurrentEncoding(hidden, source_mask, finals)

    def start_cache(
        self, encoded: RecurrentEncoding, beam: int, max_length: int
    ) -> RecurrentCache[DecoderState]:
        """Prepare step-by-step decoding; the cache does not grow with the length.

        Args:
            encoded: B encoded sentences.
            beam: number of hypotheses per sentence, K.
            max_length: largest number of steps; not used.
        """
        memory, state = self._read(encoded)
        sentences = torch.arange(len(encoded.mask), device=encoded.mask.device)
        return RecurrentCache(state.select(sentences.repeat_interleave(beam)), memory, beam)

    def decode_step(self, tokens: Tensor, cache: RecurrentCache[DecoderState]) -> Tensor:
        """Append one token to each hypothesis and score the next.

        Args:
            tokens: (N,) with N = B K; row n belongs to sentence n // K.
            cache: state of the search; advanced by one position.

        Returns:
            Logits (N, V).
        """
        decoded = self.decoder.cells(self._embed_target(tokens[:, None]), cache.state, cache.memory)
        cache.state = decoded.state
        return self._project(decoded.hidden[:, 0])

    def _read(self, encoded: RecurrentEncoding) -> tuple[Memory | None, DecoderState]:
        memory, state = self.decoder.source(encoded.hidden, encoded.mask, encoded.finals)
        return memory, state

    def _embed_target(self, tokens: Tensor) -> Tensor:
        embedded = self.target_embedding(tokens)
        return F.dropout(embedded, self.dropout_target, self.training)

    def _project(self, hidden: Tensor) -> Tensor:
        hidden = self.decoder.project(hidden)
        return token_scores(hidden, self.target_embedding, self.output)
