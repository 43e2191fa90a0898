"""The state of a batch of beam searches in the decoder.

Shapes: B sentences, S source length, K beam width, N = B K hypotheses (row n belongs to sentence
n // K), L decoded length.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ds_seq.modules.body import Context, Past
from ds_seq.modules.kv_cache import (
    BeamPaths,
    KeptSentences,
    KeyValueBuffer,
    SourcePast,
    is_identity,
)


class DecoderCache:
    """Everything that `decode_step` needs from earlier steps.

    Args:
        pasts: state of each *call* of a layer, in order, with one entry per sub-layer. A layer that
            is called several times in a stack has separate states. None for bodies without state.
        context: what the layers may read in addition to the hidden states, the same in all steps.
        paths: which decoded keys belong to which hypothesis; shared by `pasts`.
    """

    def __init__(
        self, pasts: Sequence[Sequence[Past | None]], context: Context, paths: BeamPaths
    ) -> None:
        self.pasts = pasts
        self.context = context
        self.paths = paths
        self._states = [past for call in pasts for past in call if past is not None]
        # states of other kinds have a row per hypothesis from the first step on
        self._can_share = all(isinstance(s, KeyValueBuffer | SourcePast) for s in self._states)

    @property
    def length(self) -> int:
        """Number of decoded steps, L."""
        return self.paths.length

    @property
    def beam(self) -> int:
        """Number of hypotheses per sentence, K."""
        return self.paths.beam

    def distinct(self, tokens: Tensor) -> Tensor:
        """Return the newest tokens (N,) as (B, K), or as (B, 1) where one stands for all.

        A search starts with K equal hypotheses of each sentence, of which it is enough to decode
        one. On a GPU, comparing them would need a synchronization, so there all are decoded.
        """
        by_sentence = tokens.view(-1, self.beam)
        if self.length or self.beam == 1 or not self._can_share or tokens.device.type != "cpu":
            return by_sentence
        first = by_sentence[:, :1]
        return first if bool((by_sentence == first).all()) else by_sentence

    def of_each(self, logits: Tensor) -> Tensor:
        """Return logits (N, V), given those of all hypotheses or of one per sentence, (B, V)."""
        num_rows = self.paths.num_rows
        return logits if len(logits) == num_rows else logits.repeat_interleave(self.beam, 0)

    def advance(self, width: int) -> None:
        """Open the next position, for K hypotheses of each sentence or one that stands for all."""
        self.paths.advance(width)

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]`.

        Keys and values stay where they are (see `ds_seq.modules.kv_cache`); states of recurrent
        bodies are moved.

        Args:
            rows: (N,) int64; `rows[n] // K == n // K`: hypotheses never leave their sentence.
        """
        self.paths.reorder(rows)
        for past in self._states:
            past.reorder(rows)

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep only some sentences, with all their hypotheses.

        Only sentences that move are copied, so it is cheapest to fill gaps with the last sentences.

        Args:
            kept: (B',) int64 indices of sentences; they become sentences 0 .. B' - 1.
        """
        if is_identity(kept, self.paths.num_rows // self.beam):
            return
        context = self.context
        per_sentence = context.source_mask, context.tag, context.sets
        mask, tag, sets = (x if x is None else x.index_select(0, kept) for x in per_sentence)
        self.context = context._replace(source_mask=mask, tag=tag, sets=sets)
        if context.adapters is not None:
            self.context = self.context._replace(adapters=context.adapters.keep(kept))
        moves = KeptSentences.of(kept)
        self.paths.keep_sentences(moves)
        for past in self._states:
            past.keep_sentences(moves)
