"""The book-keeping of beam search: open hypotheses as tensors, finished ones as lists.

Shapes: B sentences, A sentences not finished yet, K beam width, N = A K hypotheses, C = 2 K
candidates of a sentence, L decoded length, H hypotheses that finish in one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.generation.penalties import LengthPenalty

_NEVER = -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation.

    Attributes:
        tokens: ids, without the end symbol.
        score: sum of log-probabilities, divided as `LengthPenalty` says; the end symbol included.
        token_scores: log-probability of each token and of the end symbol.
    """

    tokens: list[int]
    score: float
    token_scores: list[float] = field(repr=False)


class _Finished(NamedTuple):
    """Hypotheses that finished in the same step."""

    sentences: Tensor
    """(H,) numbers of their sentences in the batch."""
    scores: Tensor
    """(H,)."""
    tokens: Tensor
    """(H, L)."""
    totals: Tensor
    """(H, L + 1) running sums of log-probabilities."""


class ActiveBeams:
    """The K open hypotheses of each unfinished sentence.

    At first only one hypothesis of a sentence is possible: all are empty, and equal.

    Args:
        num_sentences: B.
        beam: K.
        limits: (B,) most tokens of a hypothesis before the end symbol.
        num_best: how many hypotheses are wanted for a sentence.

    Attributes:
        length: L.
        tokens: (A, K, L).
        limits: (A,).
    """

    def __init__(self, num_sentences: int, beam: int, limits: Tensor, num_best: int) -> None:
        device = limits.device
        self.length = 0
        self.tokens = torch.empty(num_sentences, beam, 0, dtype=torch.int64, device=device)
        self.limits = limits
        self._beam = beam
        self._num_best = num_best
        self._num_sentences = num_sentences
        # (A, K, L + 1) running sums of log-probabilities, from an empty sum on
        self._totals = torch.full((num_sentences, beam, 1), _NEVER, device=device)
        self._totals[:, 0] = 0.0
        self._sentences = torch.arange(num_sentences, device=device)  # (A,) places in the batch
        self._num_finished = torch.zeros_like(self._sentences)  # (A,)
        self._best_scores = torch.full((num_sentences, num_best), _NEVER, device=device)
        self._finished: list[_Finished] = []

    @property
    def active(self) -> bool:
        """Whether there is a sentence that is not finished."""
        return len(self._sentences) > 0

    def last_tokens(self, start: int) -> Tensor:
        """The newest token of each hypothesis (N,), or `start` before the first."""
        if self.length == 0:
            return self.tokens.new_full((len(self._sentences) * self._beam,), start)
        return self.tokens[:, :, -1].flatten()

    def select(
        self, scores: Tensor, tokens: Tensor, end: int, length_penalty: LengthPenalty
    ) -> tuple[Tensor | None, Tensor]:
        """Choose among continuations: some finish, the best others become the open hypotheses.

        Args:
            scores: (N, C') log-probabilities of continuations of each hypothesis.
            tokens: (N, C') their tokens.
            end: the token that finishes a hypothesis.
            length_penalty: divides the score of a finished hypothesis.

        Returns:
            The sentences (A',) of the A that are not finished yet, or None when that is all; and
            the hypotheses (A' K,) of these that the new ones continue.
        """
        beam, width = self._beam, tokens.size(1)
        totals = self._totals[:, :, -1, None] + scores.view(-1, beam, width)  # (A, K, C')
        # A hypothesis without probability, or a model that answers NaN, never wins.
        totals = totals.nan_to_num_(nan=_NEVER, neginf=_NEVER).flatten(1)
        totals, chosen = totals.topk(min(2 * beam, totals.size(1)), dim=1)  # (A, C)
        origins = chosen // width
        tokens = tokens.view(-1, beam * width).gather(1, chosen)
        ends = tokens == end
        ending = ends[:, :beam] & totals[:, :beam].isfinite()  # (A, K)
        room = beam - self._num_finished[:, None]
        ending &= ending.cumsum(1) <= room
        open_totals, best = totals.masked_fill(ends, _NEVER).topk(beam, dim=1)  # (A, K)
        hopeless = open_totals[:, 0] == _NEVER
        kept = None
        if (ending.any(1) | hopeless).any():  # the one wait for the device in a usual step
            self._finish(ending, totals[:, :beam], origins[:, :beam], length_penalty)
            done = hopeless | self._decided(open_totals[:, 0], length_penalty)
            kept = (~done).nonzero().squeeze(1)
        self._extend(origins.gather(1, best), tokens.gather(1, best), open_totals)
        return self._keep(kept, origins.gather(1, best))

    def _finish(
        self, ending: Tensor, totals: Tensor, origins: Tensor, length_penalty: LengthPenalty
    ) -> None:
        """Put aside the candidates (A, K) marked in `ending`."""
        scores = (totals / length_penalty.divisor(self.length + 1)).masked_fill(~ending, _NEVER)
        rows, columns = ending.nonzero(as_tuple=True)  # (H,) each
        parents = origins[rows, columns]
        past = self._totals[rows, parents]  # (H, L + 1), from the empty sum on
        self._finished.append(
            _Finished(
                self._sentences[rows],
                scores[rows, columns],
                self.tokens[rows, parents],
                torch.cat([past[:, 1:], totals[rows, columns][:, None]], dim=1),
            )
        )
        self._num_finished += ending.sum(1)
        self._best_scores = torch.cat([self._best_scores, scores], dim=1).topk(self._num_best)[0]

    def _decided(self, open_totals: Tensor, length_penalty: LengthPenalty) -> Tensor:
        """Which sentences (A,) need no more steps.

        Those with K finished hypotheses; and those whose best open hypothesis, with the sum
        `open_totals` (A,), could not even win if it went on at no cost: sums only fall. What a
        sum is divided by grows with the length when the penalty is positive.
        """
        if length_penalty.exponent > 0:
            reach = open_totals / length_penalty.divisor(self.limits + 1)
        else:
            reach = open_totals / length_penalty.divisor(self.length + 2)
        return (self._num_finished >= self._beam) | (self._best_scores[:, -1] >= reach)

    def _extend(self, origins: Tensor, tokens: Tensor, totals: Tensor) -> None:
        """Let hypothesis k of each sentence be hypothesis `origins[k]` with one more token."""
        index = origins[:, :, None]  # (A, K, 1)
        past_tokens = self.tokens.gather(1, index.expand(-1, -1, self.length))
        past_totals = self._totals.gather(1, index.expand(-1, -1, self.length + 1))
        self.tokens = torch.cat([past_tokens, tokens[:, :, None]], dim=2)
        self._totals = torch.cat([past_totals, totals[:, :, None]], dim=2)
        self.length += 1

    def _keep(self, kept: Tensor | None, origins: Tensor) -> tuple[Tensor | None, Tensor]:
        """Drop the sentences that are not in `kept`; see `select` for the answer."""
        if kept is not None and len(kept) == len(self._sentences):
            kept = None
        if kept is not None:
            self.tokens = self.tokens.index_select(0, kept)
            self.limits = self.limits.index_select(0, kept)
            self._totals = self._totals.index_select(0, kept)
            self._sentences = self._sentences.index_select(0, kept)
            self._num_finished = self._num_finished.index_select(0, kept)
            self._best_scores = self._best_scores.index_select(0, kept)
            origins = origins.index_select(0, kept)
        first_rows = torch.arange(len(origins), device=origins.device)[:, None] * self._beam
        return kept, (first_rows + origins).flatten()

    def results(self) -> list[list[Hypothesis]]:
        """The wanted finished hypotheses of each of the B sentences, the best first."""
        found: list[list[Hypothesis]] = [[] for _ in range(self._num_sentences)]
        for step in self._finished:
            rows = zip(
                step.sentences.tolist(),
                step.scores.tolist(),
                step.tokens.tolist(),
                step.totals.diff(dim=1, prepend=torch.zeros_like(step.totals[:, :1])).tolist(),
                strict=True,
            )
            for sentence, score, tokens, token_scores in rows:
                found[sentence].append(Hypothesis(tokens, score, token_scores))
        # Nothing at all has a probability where a model has diverged, or all is ruled out.
        nothing = [Hypothesis([], _NEVER, [_NEVER])]
        return [
            sorted(hypotheses, key=lambda h: -h.score)[: self._num_best] or nothing
            for hypotheses in found
        ]
