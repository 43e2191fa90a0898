"""Interfaces that steer a search: guides (logits processors) and selections (candidate ranking).

A guide is a stateful logits processor: in each step it masks, per hypothesis, the tokens that must
not come next (`restrict`), and then updates its state with the tokens that were chosen (`follow`).
Prefixes and lists of allowed outputs are guides.

A selection is a guide that also ranks: in each step it picks the candidates of a beam search and
orders them by preference (`candidates`). Plain beam search orders them by log-probability; diverse
beam search and lexical constraints use other orders. A search has any number of guides and exactly
one selection.

Both hold the state of one batch; a `GuideMaker` or `SelectionMaker` holds the settings and makes
one of them for each batch.

Shapes: B sentences, A unfinished sentences, K width of the search, N = A K hypotheses (row n
belongs to sentence n // K), C' continuations per hypothesis, C = 2 K candidates per sentence, L
decoded length, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ds_seq.search.top_k import top_continuations, top_k


class Guide(Protocol):
    """Masks tokens for the hypotheses of one batch and keeps the state that this requires."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Set tokens that must not come next to -inf, in place.

        Args:
            log_probs: log-probabilities (N, V) of the next token, unmodified by the search.
            tokens: tokens (A, K, L) decoded so far.
        """

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Update the state after a step.

        Args:
            rows: (N',) new hypothesis n continues old hypothesis `rows[n]`. Sentences may have
                changed places, and finished ones have no rows.
            tokens: (N',) the token appended to each new hypothesis.
        """


class GuideMaker(Protocol):
    """Makes a guide for each batch."""

    def room(self, number: int) -> int:
        """Return how many tokens the length limit of sentence `number` must allow at least."""

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> Guide:
        """Return a guide for a batch of empty hypotheses.

        Args:
            numbers: numbers of the B sentences in the whole input.
            width: width K of the search.
            limits: most tokens of a hypothesis before the end symbol, (B,); at least `room`, unless
                the decoder cannot process that many.
        """


class Candidates(NamedTuple):
    """The candidates of each sentence in order of preference.

    The search finishes those among the first K that end, and continues the first K that do not.
    """

    totals: Tensor
    """(A, C) sums of the model's log-probabilities; -inf marks an impossible candidate."""
    origins: Tensor
    """(A, C) index of the hypothesis of the sentence, below K, that each candidate continues."""
    tokens: Tensor
    """(A, C) token that each candidate appends."""


class Selection(Guide, Protocol):
    """Picks the candidates of each step and ranks them."""

    def candidates(self, log_probs: Tensor, totals: Tensor) -> Candidates:
        """Return the ranked candidates.

        Args:
            log_probs: log-probabilities (N, V) of the next token, contiguous; -inf where a token is
                ruled out.
            totals: sums of log-probabilities (A, K) of the hypotheses so far; -inf for impossible
                hypotheses.
        """


class SelectionMaker(GuideMaker, Protocol):
    """Makes a selection for each batch."""

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> Selection:
        """Return a selection for a batch of empty hypotheses; see `GuideMaker.start`."""


def best_candidates(totals: Tensor, values: Tensor, tokens: Tensor, count: int) -> Candidates:
    """Return the candidates with the highest values, the highest first.

    Args:
        totals: sums of log-probabilities (A, K, C').
        values: values (A, K, C') by which candidates are ranked.
        tokens: tokens (A, K, C') of the candidates.
        count: most candidates per sentence.
    """
    width = tokens.size(2)
    chosen = values.flatten(1).topk(min(count, values[0].numel()), dim=1)[1]  # (A, C)
    return pick(totals, tokens, chosen // width, chosen)


def pick(totals: Tensor, tokens: Tensor, origins: Tensor, chosen: Tensor) -> Candidates:
    """Return the candidates (A, C) at positions `chosen` of (A, K C')."""
    return Candidates(
        totals.flatten(1).gather(1, chosen), origins, tokens.flatten(1).gather(1, chosen)
    )


class PlainSelection:
    """Standard beam search: ranks candidates by log-probability and rules nothing out."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Rule nothing out."""

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Keep no state."""

    def candidates(self, log_probs: Tensor, totals: Tensor) -> Candidates:
        """Return the 2 K most probable candidates."""
        count = min(2 * totals.size(1), totals.size(1) * log_probs.size(1))
        return Candidates(*top_continuations(log_probs, totals, count))


class RankedSelection(ABC):
    """Base class of selections that rank a few continuations of each hypothesis."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:  # noqa: B027
        """Rule nothing out."""

    def follow(self, rows: Tensor, tokens: Tensor) -> None:  # noqa: B027
        """Keep no state."""

    def candidates(self, log_probs: Tensor, totals: Tensor) -> Candidates:
        """Rank the continuations that `propose` picks."""
        scores, tokens = self.propose(log_probs, min(2 * totals.size(1), log_probs.size(1)))
        sums = totals[:, :, None] + scores.view(*totals.shape, -1)  # (A, K, C')
        sums = sums.nan_to_num_(nan=-math.inf, neginf=-math.inf)
        return self.rank(sums, tokens.view(sums.shape))

    def propose(self, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Pick continuations of each hypothesis; by default the most probable ones.

        Args:
            log_probs: log-probabilities (N, V) of the next token.
            count: number of continuations that plain beam search needs: C, or V if that is less.

        Returns:
            Log-probabilities and tokens, (N, C') each, the best `count` first.
        """
        return top_k(log_probs, count)

    @abstractmethod
    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        """Order the candidates of each sentence by preference.

        Args:
            totals: sums of log-probabilities (A, K, C') including each continuation; -inf where it
                is impossible.
            tokens: tokens (A, K, C') that `propose` picked.
        """


@dataclass(frozen=True)
class Plain:
    """Maker of `PlainSelection`."""

    def room(self, number: int) -> int:
        """Return 0: plain beam search needs no extra length."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> PlainSelection:
        """Return a selection; it keeps no state."""
        return PlainSelection()
