"""Lexically constrained decoding: translations that contain given phrases.

Post and Vilar, 2018, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation",
https://arxiv.org/abs/1804.06609; Hu et al., 2019, "Improved Lexically Constrained Decoding for
Translation and Monolingual Rewriting", https://aclanthology.org/N19-1090.

Shapes: B sentences, A unfinished sentences, K beam width, N = A K hypotheses, C' continuations per
hypothesis, C = 2 K candidates per sentence, U distinct tokens in the phrases of a sentence (maximum
over the batch), M continuations considered, V vocabulary, R numbers in a state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_seq.names import ConstraintOrder
from ds_seq.search.guides import Candidates, RankedSelection, pick
from ds_seq.search.phrase_states import PhraseProgress, any_order, given_order
from ds_seq.search.top_k import top_k

_NEVER = -math.inf
_NO_TOKEN = -1


@dataclass(frozen=True)
class Constraints:
    """Requires every translation to contain the phrases of its sentence as contiguous tokens.

    With order `given`, the phrases occur one after another. With order `any`, they may overlap, and
    a phrase that is listed twice occurs twice.

    A hypothesis may end only when it contains all phrases, and may not take a token after which the
    missing tokens would exceed its length limit; every translation found therefore contains the
    phrases. The limit is at least the length of all phrases together. Places in the beam go in
    turn to the best hypotheses with 0, 1, 2, ... missing tokens, so that the beam always holds
    hypotheses at every stage. If other rules such as n-gram blocking leave no solution, the
    translation is empty and its score is -inf.

    Attributes:
        phrases: token ids of the phrases of each sentence of the whole input; a sentence may have
            no phrases, but no phrase may be empty.
        order: order in which the phrases must occur.
        end: the end symbol.
    """

    phrases: Sequence[Sequence[Sequence[int]]]
    order: ConstraintOrder
    end: int

    def room(self, number: int) -> int:
        """Return the number of tokens of all phrases together."""
        return sum(map(len, self.phrases[number]))

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> ConstrainedSelection:
        """Return the selection for a batch of empty hypotheses."""
        batch = [self.phrases[number] for number in numbers]
        make = given_order if self.order == "given" else any_order
        words = [sorted({token for phrase in phrases for token in phrase}) for phrases in batch]
        most = max(map(len, words), default=0)
        rows = [row + [_NO_TOKEN] * (most - len(row)) for row in words]
        table = torch.tensor(rows, dtype=torch.int64, device=limits.device).view(len(rows), most)
        progress = make(batch, rows, limits.device)
        return ConstrainedSelection(progress, table, limits, width, self.end)


class ConstrainedSelection(RankedSelection):
    """Selection that tracks which phrases each hypothesis of a batch contains.

    Args:
        progress: automata of the phrases.
        words: distinct tokens of the phrases (B, U), padded with `_NO_TOKEN`.
        limits: most tokens of a hypothesis before the end symbol, (B,).
        width: beam width K.
        end: the end symbol.
    """

    def __init__(
        self, progress: PhraseProgress, words: Tensor, limits: Tensor, width: int, end: int
    ) -> None:
        self._progress = progress
        self._words = words  # (A, U)
        self._limits = limits  # (A,)
        self._length = 0
        self._width = width
        self._end = end
        self._states = progress.start(width)  # (A, K, R)

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Rule out early ends, and tokens that leave too little room for the missing phrases."""
        unfinished = self._progress.needed(self._states).gt(0).flatten()  # (N,)
        log_probs[:, self._end].masked_fill_(unfinished, _NEVER)
        left = (self._limits - self._length - 1)[:, None, None]  # tokens after this one
        strays = (self._needed_after() > left).flatten(0, 1)  # (N, U + 1)
        words = self._words.repeat_interleave(self._width, dim=0)  # (N, U)
        rows, columns = words.ne(_NO_TOKEN).nonzero(as_tuple=True)
        words = words[rows, columns]
        scores = log_probs[rows, words].masked_fill(strays[rows, columns], _NEVER)
        ends = log_probs[:, self._end].clone()
        log_probs.masked_fill_(strays[:, -1:], _NEVER)
        log_probs[rows, words] = scores
        log_probs[:, self._end] = ends  # possible only where nothing is missing

    def propose(self, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Pick the best continuations and all tokens of phrases."""
        best, tokens = top_k(log_probs, count)  # (N, C)
        words = self._words.repeat_interleave(self._width, dim=0)  # (N, U)
        scores = log_probs.gather(1, words.clamp(min=0))
        twice = (words[:, :, None] == tokens[:, None]).any(2)
        scores = scores.masked_fill(twice | words.eq(_NO_TOKEN), _NEVER)
        return torch.cat([best, scores], 1), torch.cat([tokens, words.clamp(min=0)], 1)

    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        """Alternate between numbers of missing tokens; for each, the most probable come first."""
        width = tokens.size(2)
        needed = self._progress.needed(self._advance(self._states, tokens)).flatten(1)  # (A, K C')
        order = totals.flatten(1).sort(dim=1, descending=True, stable=True)[1]
        banks = needed.gather(1, order)
        by_bank, places = banks.sort(dim=1, stable=True)  # within a bank, the best come first
        order = order.gather(1, places)
        numbers = torch.arange(order.size(1), device=order.device).expand_as(order)
        opens = torch.ones_like(by_bank, dtype=torch.bool)
        opens[:, 1:] = by_bank[:, 1:] != by_bank[:, :-1]
        first = numbers.where(opens, 0).cummax(1)[0]  # where the bank of each candidate begins
        turn = numbers - first  # (A, K C')
        impossible = totals.flatten(1).gather(1, order) == _NEVER
        turn = turn.masked_fill(impossible, order.size(1))
        # stable: within a turn, candidates with the fewest missing tokens come first
        chosen = order.gather(1, turn.sort(dim=1, stable=True)[1][:, : 2 * self._width])
        return pick(totals, tokens, chosen // width, chosen)

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Advance the states of the phrases by the new tokens."""
        kept = rows[:: self._width] // self._width  # (A',)
        states = self._states.flatten(0, 1)[rows].unflatten(0, (-1, self._width))
        self._progress = self._progress.keep(kept)
        self._words, self._limits = self._words[kept], self._limits[kept]
        self._length += 1
        self._states = self._advance(states, tokens.view(-1, self._width, 1)).squeeze(2)

    def _needed_after(self) -> Tensor:
        """Return the missing tokens after each phrase token, and after others: (A, K, U + 1)."""
        num_words = self._words.size(1)
        columns = torch.arange(num_words + 1, device=self._words.device)
        columns = columns.expand(len(self._words), self._width, num_words + 1)
        return self._progress.needed(self._progress.advance(self._states, columns))

    def _advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the states (A, K, M, R) that follow states (A, K, R) after tokens (A, K, M)."""
        num_words = self._words.size(1)
        same = tokens[..., None] == self._words[:, None, None]  # (A, K, M, U)
        known = same.any(3)
        columns = same.long().argmax(3) if num_words else torch.zeros_like(tokens)
        return self._progress.advance(states, columns.where(known, num_words))
