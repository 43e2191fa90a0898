"""Draw the subwords of a text: subword regularization and BPE-dropout, from a seed.

SentencePiece draws from a generator whose numbers differ from process to process, whatever its
seed. Training must draw the same subwords on any rank and after a resume, so they are drawn here,
from the pieces of the model and a generator of the caller. A SentencePiece model splits words
independently of each other, so each word is drawn by itself, and what is computed for a word is
kept for the next time.

Shapes: L characters of a word.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec

from ds_seq.errors import UserError
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import SPACE, Tokenizer

_MOST_WORDS = 100_000  # words whose choices are kept


class _Choice(NamedTuple):
    """The pieces with which a part of a word can end."""

    starts: list[int]
    """Where each begins."""
    ids: list[int]
    """Their ids."""
    weights: list[float]
    """Sums of their probabilities and of those before them."""


class SubwordDraws:
    """Draws the subwords of lines.

    Args:
        tokenizer: the vocabulary.
        alpha: for a unigram model, the exponent of the probability P ** alpha of a segmentation
            (Kudo, 2018, "Subword Regularization", https://arxiv.org/abs/1804.10959); for a BPE
            model, the probability to leave out a merge (Provilkov et al., 2020, "BPE-Dropout",
            https://arxiv.org/abs/1910.13267).

    Raises:
        UserError: the vocabulary is no SentencePiece model of one of these kinds.
    """

    def __init__(self, tokenizer: Tokenizer, alpha: float) -> None:
        if not isinstance(tokenizer, SentencePieceTokenizer):
            raise UserError(
                "data.modify.subword_alpha: only SentencePiece vocabularies can draw subwords; set "
                "it to 0"
            )
        model = ModelProto.FromString(tokenizer.to_bytes())
        kind = model.trainer_spec.model_type
        if kind not in (TrainerSpec.UNIGRAM, TrainerSpec.BPE):
            raise UserError(
                "data.modify.subword_alpha: only unigram and BPE models can draw subwords; set it "
                "to 0"
            )
        self._tokenizer, self._alpha = tokenizer, alpha
        self._is_bpe = kind == TrainerSpec.BPE
        normal = ModelProto.SentencePiece.NORMAL
        self._pieces = {
            piece.piece: (index, piece.score)
            for index, piece in enumerate(model.pieces)
            if piece.type == normal
        }
        self._longest = max(map(len, self._pieces), default=1)
        self._known: dict[str, list[_Choice] | None] = {}

    def __call__(self, text: str, draw: random.Random) -> list[int]:
        """Return drawn ids of a line.

        Args:
            text: a line.
            draw: generator.
        """
        ids, pieces = self._tokenizer.encode(text), self._tokenizer.split_lines([text])[0]
        assert len(ids) == len(pieces)
        drawn: list[int] = []
        for first, last in _words(pieces):
            drawn += self._word("".join(pieces[first:last]), ids[first:last], draw)
        return drawn

    def _word(self, word: str, ids: Sequence[int], draw: random.Random) -> Sequence[int]:
        """Return drawn ids of a word; `ids` if it has other pieces than normal ones."""
        found = self._merged(word, draw) if self._is_bpe else self._segmented(word, draw)
        return ids if found is None else found

    def _segmented(self, word: str, draw: random.Random) -> list[int] | None:
        """Draw a segmentation of a word, from its end, by a unigram model."""
        if word not in self._known:
            if len(self._known) >= _MOST_WORDS:
                self._known.clear()
            self._known[word] = self._choices(word)
        choices = self._known[word]
        if choices is None:
            return None
        ids, end = [], len(word)
        while end:
            choice = choices[end]
            (number,) = draw.choices(range(len(choice.ids)), cum_weights=choice.weights)
            ids.append(choice.ids[number])
            end = choice.starts[number]
        return ids[::-1]

    def _choices(self, word: str) -> list[_Choice] | None:
        """Return how each beginning of a word (L + 1) can end; None if the word has no pieces."""
        choices = [_Choice([], [], [])]
        totals = [0.0]  # logarithms of the sums over all segmentations of the beginnings
        for end in range(1, len(word) + 1):
            starts, ids, logs = [], [], []
            for start in range(max(0, end - self._longest), end):
                piece = self._pieces.get(word[start:end])
                if piece is not None and totals[start] > -math.inf:
                    starts.append(start)
                    ids.append(piece[0])
                    logs.append(totals[start] + self._alpha * piece[1])
            most = max(logs, default=-math.inf)
            weights = [math.exp(value - most) for value in logs]
            totals.append(most + math.log(sum(weights)) if weights else -math.inf)
            choices.append(_Choice(starts, ids, list(accumulate(weights))))
        return None if totals[-1] == -math.inf else choices

    def _merged(self, word: str, draw: random.Random) -> list[int] | None:
        """Merge the characters of a word by a BPE model, but leave out some merges."""
        symbols: list[str | None] = list(word)
        before = list(range(-1, len(word) - 1))
        after = [*range(1, len(word)), -1]
        agenda: list[tuple[float, int, int, str]] = []

        def add(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                merged = f"{symbols[left]}{symbols[right]}"
                if merged in self._pieces:
                    heapq.heappush(agenda, (-self._pieces[merged][1], left, right, merged))

        for left in range(len(word) - 1):
            add(left, left + 1)
        while agenda:
            _, left, right, merged = heapq.heappop(agenda)
            if symbols[left] is None or symbols[right] is None:
                continue
            if f"{symbols[left]}{symbols[right]}" != merged or draw.random() < self._alpha:
                continue
            symbols[left], symbols[right] = merged, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            add(before[left], left)
            add(left, after[left])
        pieces = [symbol for symbol in symbols if symbol is not None]
        if any(piece not in self._pieces for piece in pieces):
            return None
        return [self._pieces[piece][0] for piece in pieces]


def _words(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first piece of each word, and the one after its last."""
    starts = [n for n, piece in enumerate(pieces) if n == 0 or piece.startswith(SPACE)]
    return [*pairwise([*starts, len(pieces)])]
