"""What may steer a search from outside: guides rule tokens out, a selection orders candidates.

Shapes: B sentences, A sentences not finished yet, K width of the search, N = A K hypotheses (row n
belongs to sentence n // K), C' continuations of a hypothesis, C = 2 K candidates of a sentence, L
decoded length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ds_seq.generation.top_k import top_k


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


class Choice(NamedTuple):
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

    def propose(self, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Pick continuations of each hypothesis.

        Args:
            log_probs: (N, V), contiguous.
            count: how many are enough for plain beam search.

        Returns:
            Log-probabilities and tokens, (N, C') each; the best in the first column, so that
            there is one at least.
        """

    def choose(self, totals: Tensor, tokens: Tensor) -> Choice:
        """Order the candidates of each sentence.

        Args:
            totals: (A, K, C') sums of log-probabilities up to each continuation, or -inf.
            tokens: (A, K, C') the tokens that `propose` picked, or the end symbol.
        """


class SelectionMaker(GuideMaker, Protocol):
    """Makes a selection for each batch."""

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> Selection:
        """See `GuideMaker.start`."""


def best_candidates(totals: Tensor, values: Tensor, tokens: Tensor, count: int) -> Choice:
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


def pick(totals: Tensor, tokens: Tensor, origins: Tensor, chosen: Tensor) -> Choice:
    """The candidates (A, C) at places `chosen` of (A, K C')."""
    return Choice(totals.flatten(1).gather(1, chosen), origins, tokens.flatten(1).gather(1, chosen))


class PlainSelection:
    """Beam search as usual: the most probable candidates, nothing ruled out."""

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Rules nothing out."""

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Remembers nothing."""

    def propose(self, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best: the 2 K best of a sentence are among the 2 K best of each."""
        return top_k(log_probs, min(count, log_probs.size(1)))

    def choose(self, totals: Tensor, tokens: Tensor) -> Choice:
        """The 2 K best."""
        return best_candidates(totals, totals, tokens, 2 * totals.size(1))


@dataclass(frozen=True)
class Plain:
    """Makes `PlainSelection`s."""

    def room(self, number: int) -> int:
        """Nothing is asked for."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> PlainSelection:
        """It is the same for every batch."""
        return PlainSelection()
