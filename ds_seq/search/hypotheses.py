"""The bookkeeping of beam search: open hypotheses as tensors, finished ones as lists.

Shapes: B sentences, A unfinished sentences, K beam width, N = A K hypotheses, C = 2 K candidates
per sentence, L decoded length, H hypotheses that finish in one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ds_seq.search.guides import Selection
from ds_seq.search.penalties import LengthPenalty
from ds_seq.text.tokenizer import Symbols

_NEVER = -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """A finished translation.

    Attributes:
        tokens: token ids without the end symbol.
        score: sum of log-probabilities including the end symbol, divided by the `LengthPenalty`.
        token_scores: log-probability of each token and of the end symbol.
        alignment: index of the source token that each token is aligned with, or None; see
            `ds_seq.generation.alignment.Aligner`.
        utility: expected utility from 0 to 100, or None; see `ds_seq.generation.mbr.MinimumRisk`.
    """

    tokens: list[int]
    score: float
    token_scores: list[float] = field(repr=False)
    alignment: list[int] | None = field(default=None, repr=False)
    utility: float | None = None


class _Finished(NamedTuple):
    """Hypotheses that finished in the same step and were among the best so far."""

    sentences: Tensor
    """(H,) indices of their sentences in the batch."""
    scores: Tensor
    """(H,) scores, length penalty included."""
    tokens: Tensor
    """(H, L) token ids without the end symbol."""
    totals: Tensor
    """(H, L + 1) running sums of log-probabilities."""


def fill_holes(done: Tensor) -> Tensor:
    """Return the sentences (A',) that are not `done` (A,), in an order that moves few of them.

    The last sentences take the places of those that leave; the others keep their places.
    """
    left = done.logical_not()
    count = int(left.sum())
    kept = torch.arange(count, device=done.device)
    kept[done[:count]] = left[count:].nonzero().squeeze(1) + count
    return kept


class SearchStep(NamedTuple):
    """The outcome of a step, which turns A sentences with N hypotheses into A' with N'."""

    kept: Tensor | None
    """(A',) the sentences that are not finished; None if none has finished."""
    rows: Tensor | None
    """(N',) the hypotheses that the new ones continue, as rows of the kept sentences; None if each
    continues itself."""
    past_rows: Tensor
    """(N',) the hypotheses that the new ones continue, as rows of all N earlier hypotheses."""
    tokens: Tensor
    """(N',) the newest tokens."""


class Active(Protocol):
    """The hypotheses of the unfinished sentences of a batch."""

    length: int
    """Decoded length L."""
    tokens: Tensor
    """(A, K, L) tokens decoded so far."""

    @property
    def active(self) -> bool:
        """Whether any sentence is unfinished."""

    def last_tokens(self) -> Tensor:
        """Return the newest token of each hypothesis (N,), at first the start symbol."""

    def advance(self, log_probs: Tensor, end_scores: Tensor) -> SearchStep:
        """Extend each hypothesis by one token.

        Args:
            log_probs: log-probabilities (N, V) of the next token; -inf where a token is ruled out.
            end_scores: log-probabilities (N,) of the end symbol, for hypotheses that must end.
        """

    def results(self) -> list[list[Hypothesis]]:
        """Return the hypotheses of each of the B sentences."""


class ActiveBeams:
    """The K open hypotheses of each unfinished sentence.

    At first, only one hypothesis per sentence is possible, since all are empty and equal.

    Args:
        limits: most tokens of a hypothesis before the end symbol, (B,).
        beam: beam width K.
        num_best: number of hypotheses to return per sentence.
        symbols: special symbols of the target, for the start and end symbols.
        penalty: divisor of the score of a finished hypothesis.
        selection: ranking of the candidates.

    Attributes:
        length: decoded length L.
        tokens: tokens (A, K, L) decoded so far.
    """

    def __init__(
        self,
        limits: Tensor,
        beam: int,
        num_best: int,
        symbols: Symbols,
        penalty: LengthPenalty,
        selection: Selection,
    ) -> None:
        num_sentences, device = len(limits), limits.device
        self.length = 0
        self.tokens = torch.empty(num_sentences, beam, 0, dtype=torch.int64, device=device)
        self._limits = limits
        self._least_limit = int(limits.min()) if num_sentences else 0
        self._beam = beam
        self._num_best = num_best
        self._start, self._end = symbols.start, symbols.eos
        self._penalty = penalty
        self._selection = selection
        self._num_sentences = num_sentences
        # (A, K, L + 1) running sums of log-probabilities, starting with an empty sum
        self._totals = torch.full((num_sentences, beam, 1), _NEVER, device=device)
        self._totals[:, 0] = 0.0
        self._sentences = torch.arange(num_sentences, device=device)  # (A,) indices in the batch
        self._num_finished = torch.zeros_like(self._sentences)  # (A,)
        self._best_scores = torch.full((num_sentences, num_best), _NEVER, device=device)
        self._finished: list[_Finished] = []

    @property
    def active(self) -> bool:
        """Whether any sentence is unfinished."""
        return len(self._sentences) > 0

    def last_tokens(self) -> Tensor:
        """Return the newest token of each hypothesis (N,), at first the start symbol."""
        if self.length == 0:
            return self.tokens.new_full((len(self._sentences) * self._beam,), self._start)
        return self.tokens[:, :, -1].flatten()

    def advance(self, log_probs: Tensor, end_scores: Tensor) -> SearchStep:
        """Choose among continuations: some finish, the best others become the open hypotheses.

        Args:
            log_probs: log-probabilities (N, V) of the next token; -inf where a token is ruled out.
                Changed in place.
            end_scores: log-probabilities (N,) of the end symbol, for hypotheses that must end.
        """
        if self.length >= self._least_limit:
            at_limit = self._limits.le(self.length).repeat_interleave(self._beam)  # (N,)
            log_probs.masked_fill_(at_limit[:, None], _NEVER)
            log_probs[:, self._end] = end_scores.where(at_limit, log_probs[:, self._end])
        return self._select(*self._selection.candidates(log_probs, self._totals[:, :, -1]))

    def _select(self, totals: Tensor, origins: Tensor, tokens: Tensor) -> SearchStep:
        """Finish or continue candidates, all (A, C) in order of preference."""
        beam = self._beam
        ends = tokens == self._end
        ending = ends[:, :beam] & totals[:, :beam].isfinite()  # (A, K)
        room = beam - self._num_finished[:, None]
        ending &= ending.cumsum(1) <= room
        # the first K candidates that do not end, in order of preference
        best = ends.to(torch.uint8).sort(dim=1, stable=True)[1][:, :beam]  # (A, K)
        open_totals = totals.masked_fill(ends, _NEVER).gather(1, best)
        best_open = open_totals.amax(1)
        hopeless = best_open == _NEVER
        kept = None
        if (ending.any(1) | hopeless).any():  # the only wait for the device in a typical step
            self._finish(ending, totals[:, :beam], origins[:, :beam])
            done = hopeless | self._decided(best_open)
            kept = fill_holes(done) if done.any() else None  # without a done sentence none moves
        self._extend(origins.gather(1, best), tokens.gather(1, best), open_totals)
        return self._keep(kept, origins.gather(1, best))

    def _finish(self, ending: Tensor, totals: Tensor, origins: Tensor) -> None:
        """Store the candidates (A, K) marked in `ending` as finished hypotheses."""
        scores = (totals / self._penalty.divisor(self.length + 1)).masked_fill(~ending, _NEVER)
        # Store only those that may be among the best in the end; on ties the earlier one wins.
        wanted = scores > self._best_scores[:, -1:]
        rows, columns = wanted.nonzero(as_tuple=True)  # (H,) each
        parents = origins[rows, columns]
        past = self._totals[rows, parents]  # (H, L + 1), starting with the empty sum
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

    def _decided(self, open_totals: Tensor) -> Tensor:
        """Return which sentences (A,) need no more steps.

        These are the sentences with K finished hypotheses, and those whose best open hypothesis,
        with the sum `open_totals` (A,), could not win even if all further tokens had probability 1.
        Sums never grow, and with a positive exponent the divisor grows with the length.
        """
        if self._penalty.exponent > 0:
            reach = open_totals / self._penalty.divisor(self._limits + 1)
        else:
            reach = open_totals / self._penalty.divisor(self.length + 2)
        return (self._num_finished >= self._beam) | (self._best_scores[:, -1] >= reach)

    def _extend(self, origins: Tensor, tokens: Tensor, totals: Tensor) -> None:
        """Replace hypothesis k of each sentence by hypothesis `origins[k]` plus one token."""
        index = origins[:, :, None]  # (A, K, 1)
        past_tokens = self.tokens.gather(1, index.expand(-1, -1, self.length))
        past_totals = self._totals.gather(1, index.expand(-1, -1, self.length + 1))
        self.tokens = torch.cat([past_tokens, tokens[:, :, None]], dim=2)
        self._totals = torch.cat([past_totals, totals[:, :, None]], dim=2)
        self.length += 1

    def _keep(self, kept: Tensor | None, origins: Tensor) -> SearchStep:
        """Drop the sentences that are not in `kept`."""
        first_rows = torch.arange(len(origins), device=origins.device)[:, None] * self._beam
        if kept is None:
            rows = (first_rows + origins).flatten()
            return SearchStep(None, rows, rows, self.tokens[:, :, -1].flatten())
        self.tokens = self.tokens.index_select(0, kept)
        self._limits = self._limits.index_select(0, kept)
        self._totals = self._totals.index_select(0, kept)
        self._sentences = self._sentences.index_select(0, kept)
        self._num_finished = self._num_finished.index_select(0, kept)
        self._best_scores = self._best_scores.index_select(0, kept)
        origins = origins.index_select(0, kept)
        rows = (first_rows[: len(kept)] + origins).flatten()
        past_rows = (first_rows.index_select(0, kept) + origins).flatten()
        return SearchStep(kept, rows, past_rows, self.tokens[:, :, -1].flatten())

    def results(self) -> list[list[Hypothesis]]:
        """Return the `num_best` finished hypotheses of each of the B sentences, the best first."""
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(self._num_sentences)]
        for step, finished in enumerate(self._finished):
            for row, (sentence, score) in enumerate(
                zip(finished.sentences.tolist(), finished.scores.tolist(), strict=True)
            ):
                found[sentence].append((score, step, row))
        # No hypothesis is possible if the model has diverged, or if all tokens are ruled out.
        nothing = [Hypothesis([], _NEVER, [_NEVER])]
        # sorting is stable: of equal scores the earlier one comes first
        best = (sorted(each, key=lambda one: -one[0])[: self._num_best] for each in found)
        return [[self._hypothesis(*one) for one in each] or nothing for each in best]

    def _hypothesis(self, score: float, step: int, row: int) -> Hypothesis:
        """Return a finished hypothesis; most are never asked for."""
        finished = self._finished[step]
        totals = finished.totals[row]
        token_scores = totals.diff(prepend=totals.new_zeros(1))
        return Hypothesis(finished.tokens[row].tolist(), score, token_scores.tolist())
