"""Rescoring: scores of translations from any source, on many ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ds_seq import distributed
from ds_seq.activity import mark
from ds_seq.errors import UserError
from ds_seq.generation.forced import ForcedPair, Scorable, score_pairs, score_texts
from ds_seq.generation.translate import BatchLimits, cut_batches
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizers

_NO_TEXT = Hypothesis([], 0.0, [])


class Row(NamedTuple):
    """A translation to be scored."""

    line: int
    """Number of the source line, from 0."""
    text: str
    """Normalized text."""
    where: int
    """Line of the translations' file, from 1."""


class EncodedRows(NamedTuple):
    """Encoded translations to be scored."""

    pairs: dict[int, ForcedPair]
    """Pairs by row, from 0; rows without any text are missing."""
    cut: list[int]
    """Numbers, from 1, of the source lines that were truncated."""
    num_rows: int
    """Number of rows, including those without any text."""


def encode_rows(
    tokenizers: Tokenizers,
    source: Sequence[str],
    rows: Sequence[Row],
    name: str,
    max_positions: int,
    longest_source: int,
) -> EncodedRows:
    """Encode both sides; long sources are truncated as in a search.

    Args:
        tokenizers: tokenizers of both sides.
        source: normalized source lines.
        rows: translations of the source lines.
        name: name of the translations' file, for messages.
        max_positions: most tokens that the model accepts.
        longest_source: most tokens of a source.

    Raises:
        UserError: a translation is longer than the model accepts, so part of it has no score.
    """
    pairs: dict[int, ForcedPair] = {}
    framed, opening = tokenizers.source.symbols.framed, tokenizers.target.symbols.opening
    room = longest_source - len(framed([]))
    sources = tokenizers.source.encode_lines(source)
    targets = tokenizers.target.encode_lines([row.text for row in rows])
    for number, (row, target) in enumerate(zip(rows, targets, strict=True)):
        ids = sources[row.line]
        if len(target) >= max_positions - len(opening):
            raise UserError(
                f"{name}: line {row.where}: has {len(target):,} pieces; the model takes "
                f"{max_positions - len(opening) - 1:,}; shorten or remove it"
            )
        if ids or target:
            pairs[number] = ForcedPair(framed(ids[:room]), [*opening, *target])
    cut = [number for number, ids in enumerate(sources, 1) if len(ids) > room]
    return EncodedRows(pairs, cut, len(rows))


@dataclass(frozen=True)
class PairScorer:
    """Scores pairs as a search that found them would; see `score_pairs`.

    Attributes:
        model: the model, in evaluation mode.
        search: the search whose scoring is applied.
        limits: size of the batches.
        device: device of the model.
    """

    model: Scorable
    search: BeamSearch
    limits: BatchLimits
    device: torch.device

    def __call__(
        self, encoded: EncodedRows, rank: int = 0, world_size: int = 1
    ) -> list[Hypothesis] | None:
        """Score all rows, each process its share; rows without text have score 0.

        Args:
            encoded: the encoded rows, the same on every rank.
            rank: rank of this process.
            world_size: number of processes; a collective if there is more than one.

        Returns:
            A hypothesis for each row on rank 0, None on other ranks.
        """
        scored = self._score(encoded.pairs, rank, world_size)
        if scored is None:
            return None
        return [scored.get(number, _NO_TEXT) for number in range(encoded.num_rows)]

    def _score(
        self, pairs: Mapping[int, ForcedPair], rank: int, world_size: int
    ) -> dict[int, Hypothesis] | None:
        rows = np.array(list(pairs), np.int64)
        lengths = [max(len(pair.source), len(pair.target) + 1) for pair in pairs.values()]
        done: dict[int, Hypothesis] = {}
        # whole batches are distributed, so that no digit of a score depends on the number of ranks
        for batch in cut_batches(np.array(lengths, np.int64), self.limits)[rank::world_size]:
            mark()
            numbers = rows[batch].tolist()
            scores = self._of_batch([pairs[row] for row in numbers])
            done.update(zip(numbers, scores, strict=True))
        shares = distributed.gather_objects(done)
        if shares is None:
            return None
        return {row: score for share in shares for row, score in share.items()}

    def _of_batch(self, pairs: Sequence[ForcedPair]) -> list[Hypothesis]:
        return score_pairs(self.model, self.search, pairs, self.device)


@dataclass(frozen=True)
class TextScorer(PairScorer):
    """Scores the targets of pairs with a language model, which does not read their sources."""

    def _of_batch(self, pairs: Sequence[ForcedPair]) -> list[Hypothesis]:
        return score_texts(self.model, self.search, pairs, self.device)
