"""What may steer a search from outside: guides rule tokens out, a selection orders candidates.

Shapes: B sentences, A sentences not finished yet, K width of the search, N = A K hypotheses (row n
belongs to sentence n // K), C' continuations of a hypothesis, C = 2 K candidates of a sentence, L
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
    """Rules tokens out for the hypotheses of one batch; it remembers what it needs of each."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Write -inf, in place, at tokens that must not come next.

        Args:
            log_probs: (N, V) of the next token, as the model has them.
            tokens: (A, K, L) decoded so far.
        """

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Learn what has become of the hypotheses in this step.

        Args:
            rows: (N',) new hypothesis n continues old hypothesis `rows[n]`. Sentences may have
                changed places; of those that are finished there is no row.
            tokens: (N',) what it continues it with.
        """


class GuideMaker(Protocol):
    """Makes a guide for each batch."""

    def room(self, number: int) -> int:
        """Tokens that the length limit of sentence `number` must allow, whatever its source."""

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> Guide:
        """A guide for empty hypotheses.

        Args:
            numbers: of the B sentences in the whole input.
            width: K.
            limits: (B,) most tokens of a hypothesis before the end symbol; at least what `room`
                asked for, unless the decoder cannot take that many.
        """


class Candidates(NamedTuple):
    """The candidates of each sentence in order of preference.

    The search finishes those among the first K that end, and goes on with the first K that do not.
    """

    totals: Tensor
    """(A, C) sums of the model's log-probabilities, -inf for what is no candidate."""
    origins: Tensor
    """(A, C) which of the K hypotheses of the sentence they continue."""
    tokens: Tensor
    """(A, C) and with which token."""


class Selection(Guide, Protocol):
    """Decides which continuations are looked at, and which are preferred."""

    def candidates(self, log_probs: Tensor, totals: Tensor) -> Candidates:
        """The continuations that come into question.

        Args:
            log_probs: (N, V) of the next token, contiguous; -inf where it is ruled out.
            totals: (A, K) sums of log-probabilities of the hypotheses so far, -inf for those
                that are impossible.
        """


class SelectionMaker(GuideMaker, Protocol):
    """Makes a selection for each batch."""

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> Selection:
        """See `GuideMaker.start`."""


def best_candidates(totals: Tensor, values: Tensor, tokens: Tensor, count: int) -> Candidates:
    """The candidates with the highest values, the highest first.

    Args:
        totals: (A, K, C').
        values: (A, K, C') by which they are preferred.
        tokens: (A, K, C').
        count: how many of a sentence; fewer where there are fewer.
    """
    width = tokens.size(2)
    chosen = values.flatten(1).topk(min(count, values[0].numel()), dim=1)[1]  # (A, C)
    return pick(totals, tokens, chosen // width, chosen)


def pick(totals: Tensor, tokens: Tensor, origins: Tensor, chosen: Tensor) -> Candidates:
    """The candidates (A, C) at places `chosen` of (A, K C')."""
    return Candidates(
        totals.flatten(1).gather(1, chosen), origins, tokens.flatten(1).gather(1, chosen)
    )


class PlainSelection:
    """Beam search as usual: the most probable candidates, nothing ruled out."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Rules nothing out."""

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Remembers nothing."""

    def candidates(self, log_probs: Tensor, totals: Tensor) -> Candidates:
        """The 2 K best."""
        count = min(2 * totals.size(1), totals.size(1) * log_probs.size(1))
        return Candidates(*top_continuations(log_probs, totals, count))


class RankedSelection(ABC):
    """Base of selections that look at a few continuations of every hypothesis."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:  # noqa: B027
        """Rules nothing out."""

    def follow(self, rows: Tensor, tokens: Tensor) -> None:  # noqa: B027
        """Remembers nothing."""

    def candidates(self, log_probs: Tensor, totals: Tensor) -> Candidates:
        """What `rank` makes of what `propose` picks."""
        scores, tokens = self.propose(log_probs, min(2 * totals.size(1), log_probs.size(1)))
        sums = totals[:, :, None] + scores.view(*totals.shape, -1)  # (A, K, C')
        sums = sums.nan_to_num_(nan=-math.inf, neginf=-math.inf)
        return self.rank(sums, tokens.view(sums.shape))

    def propose(self, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Pick continuations of each hypothesis; here the best: plain beam search needs no more.

        Args:
            log_probs: (N, V).
            count: C, or V if that is less.

        Returns:
            Log-probabilities and tokens, (N, C') each, the best `count` first.
        """
        return top_k(log_probs, count)

    @abstractmethod
    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        """Order the candidates of each sentence.

        Args:
            totals: (A, K, C') sums of log-probabilities up to each continuation, or -inf.
            tokens: (A, K, C') the tokens that `propose` picked.
        """


@dataclass(frozen=True)
class Plain:
    """Makes `PlainSelection`s."""

    def room(self, number: int) -> int:
        """Nothing is asked for."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> PlainSelection:
        """It is the same for every batch."""
        return PlainSelection()
