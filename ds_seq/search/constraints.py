"""Translations that contain given phrases.

Post and Vilar, 2018, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation",
https://arxiv.org/abs/1804.06609; Hu et al., 2019, "Improved Lexically Constrained Decoding for
Translation and Monolingual Rewriting", https://aclanthology.org/N19-1090.

Shapes: B sentences, A sentences not finished yet, K beam width, N = A K hypotheses, C'
continuations of a hypothesis, C = 2 K candidates of a sentence, U different tokens in the phrases
of a sentence (the most of the batch), M continuations in question, V vocabulary, R numbers in a
state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ds_seq.search.guides import Candidates, RankedSelection, pick
from ds_seq.search.phrase_states import PhraseProgress, any_order, given_order
from ds_seq.search.top_k import top_k

ConstraintOrder = Literal["any", "given"]
_NEVER = -math.inf
_NO_TOKEN = -1


@dataclass(frozen=True)
class Constraints:
    """Every translation contains the phrases of its sentence, each as a row of tokens.

    With order ``given`` they occur one after another. With ``any`` they may overlap, and a phrase
    that is asked for twice occurs twice.

    A hypothesis may end when it contains all of them, and may not stray as long as it would need
    more tokens than its length limit has left; so what the search finds contains them. The limit is
    at least the length of all phrases together. Places in the beam go to the best hypotheses with
    0, 1, 2, ... missing tokens in turn, so that there are always some on the way. Only where other
    rules forbid it, n-gram blocking for example, there may be nothing to find: then the translation
    is empty and its score -inf.

    Attributes:
        phrases: token ids of the phrases of each sentence of the whole input; none at all, but no
            empty ones.
        order: in which they are to occur.
        end: the end symbol.
    """

    phrases: Sequence[Sequence[Sequence[int]]]
    order: ConstraintOrder
    end: int

    def room(self, number: int) -> int:
        """As many tokens as all phrases together have."""
        return sum(map(len, self.phrases[number]))

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> ConstrainedSelection:
        """The phrases of a batch."""
        batch = [self.phrases[number] for number in numbers]
        make = given_order if self.order == "given" else any_order
        words = [sorted({token for phrase in phrases for token in phrase}) for phrases in batch]
        most = max(map(len, words), default=0)
        rows = [own + [_NO_TOKEN] * (most - len(own)) for own in words]
        table = torch.tensor(rows, dtype=torch.int64, device=limits.device).view(len(rows), most)
        progress = make(batch, rows, limits.device)
        return ConstrainedSelection(progress, table, limits, width, self.end)


class ConstrainedSelection(RankedSelection):
    """How far the hypotheses of a batch are.

    Args:
        progress: what tokens do for the phrases.
        words: (B, U) the tokens of the phrases, filled up with `_NO_TOKEN`.
        limits: (B,) most tokens of a hypothesis before the end symbol.
        width: K.
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
        """Forbid to end too early, and what would leave too few tokens for what is missing."""
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
        """The best ones, and all tokens of phrases."""
        best, tokens = top_k(log_probs, count)  # (N, C)
        words = self._words.repeat_interleave(self._width, dim=0)  # (N, U)
        scores = log_probs.gather(1, words.clamp(min=0))
        twice = (words[:, :, None] == tokens[:, None]).any(2)
        scores = scores.masked_fill(twice | words.eq(_NO_TOKEN), _NEVER)
        return torch.cat([best, scores], 1), torch.cat([tokens, words.clamp(min=0)], 1)

    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        """Let the numbers of missing tokens take turns; of each, the most probable come first."""
        width = tokens.size(2)
        needed = self._progress.needed(self._advance(self._states, tokens)).flatten(1)  # (A, K C')
        order = totals.flatten(1).sort(dim=1, descending=True, stable=True)[1]
        banks = needed.gather(1, order)
        by_bank, places = banks.sort(dim=1, stable=True)  # within a bank the best come first
        order = order.gather(1, places)
        numbers = torch.arange(order.size(1), device=order.device).expand_as(order)
        opens = torch.ones_like(by_bank, dtype=torch.bool)
        opens[:, 1:] = by_bank[:, 1:] != by_bank[:, :-1]
        first = numbers.where(opens, 0).cummax(1)[0]  # where the bank of each candidate begins
        turn = numbers - first  # (A, K C')
        impossible = totals.flatten(1).gather(1, order) == _NEVER
        turn = turn.masked_fill(impossible, order.size(1))
        # stable: within a turn, those to whom least is missing come first
        chosen = order.gather(1, turn.sort(dim=1, stable=True)[1][:, : 2 * self._width])
        return pick(totals, tokens, chosen // width, chosen)

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Note what the new tokens have done for the phrases."""
        kept = rows[:: self._width] // self._width  # (A',)
        states = self._states.flatten(0, 1)[rows].unflatten(0, (-1, self._width))
        self._progress = self._progress.keep(kept)
        self._words, self._limits = self._words[kept], self._limits[kept]
        self._length += 1
        self._states = self._advance(states, tokens.view(-1, self._width, 1)).squeeze(2)

    def _needed_after(self) -> Tensor:
        """What is missing after each token of the phrases, and after any other: (A, K, U + 1)."""
        num_words = self._words.size(1)
        columns = torch.arange(num_words + 1, device=self._words.device)
        columns = columns.expand(len(self._words), self._width, num_words + 1)
        return self._progress.needed(self._progress.advance(self._states, columns))

    def _advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States (A, K, R) after each of tokens (A, K, M): (A, K, M, R)."""
        num_words = self._words.size(1)
        same = tokens[..., None] == self._words[:, None, None]  # (A, K, M, U)
        known = same.any(3)
        columns = same.long().argmax(3) if num_words else torch.zeros_like(tokens)
        return self._progress.advance(states, columns.where(known, num_words))
