"""The state of a batch of beam searches in the decoder.

Shapes: B sentences, S source length, K beam width, N = B K hypotheses (row n belongs to sentence
n // K), H heads, Dh width of a head, L decoded length.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ds_seq.modules.attention import KeyValue
from ds_seq.modules.kv_cache import BeamPaths, Kept, KeyValueBuffer, is_identity


@dataclass
class LayerPast:
    """What one *call* of a decoder layer remembers.

    A layer that is called several times in a stack has several pasts, one for each call.
    """

    decoded: KeyValueBuffer
    """Keys and values of the decoded tokens."""
    source: KeyValue
    """Keys and values of the encoded source (B, H, S, Dh), once per sentence."""


class DecoderCache:
    """Everything that `decode_step` needs of the earlier steps.

    Args:
        pasts: one for each layer call, in order.
        source_mask: (B, 1, 1, S), added to cross-attention scores, or None.
        paths: which decoded keys belong to which hypothesis; shared by `pasts`.
        tag: (B, D) embedding of each sentence's language tag, or None.
    """

    def __init__(
        self,
        pasts: list[LayerPast],
        source_mask: Tensor | None,
        paths: BeamPaths,
        tag: Tensor | None = None,
    ) -> None:
        self.pasts = pasts
        self.source_mask = source_mask
        self.paths = paths
        self.tag = tag

    @property
    def length(self) -> int:
        """L, the number of steps made so far."""
        return self.paths.length

    @property
    def beam(self) -> int:
        """K, the number of hypotheses of each sentence."""
        return self.paths.beam

    def advance(self) -> None:
        """Open the next position."""
        self.paths.advance()

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]`.

        Keys and values stay where they are; see `ds_seq.modules.kv_cache`.

        Args:
            rows: (N,) int64; `rows[n] // K == n // K`: hypotheses never leave their sentence.
        """
        self.paths.reorder(rows)

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep some sentences with all their hypotheses.

        Nothing is copied but the sentences that change their places: cheapest where those that
        leave are replaced by the last ones.

        Args:
            kept: (B',) int64 indices of sentences; they become sentences 0 .. B' - 1.
        """
        if is_identity(kept, self.paths.num_rows // self.beam):
            return
        if self.source_mask is not None:
            self.source_mask = self.source_mask.index_select(0, kept)
        if self.tag is not None:
            self.tag = self.tag.index_select(0, kept)
        moves = Kept.of(kept)
        self.paths.keep_sentences(moves)
        for past in self.pasts:
            past.decoded.keep_sentences(moves)
            past.source = KeyValue(*map(moves.apply, past.source))
