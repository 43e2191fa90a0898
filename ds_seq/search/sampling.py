"""Sampling: translations drawn from the model's distribution.

Truncations: the k most probable tokens (Fan et al., 2018, "Hierarchical Neural Story Generation",
https://arxiv.org/abs/1805.04833), the nucleus (Holtzman et al., 2020, "The Curious Case of Neural
Text Degeneration", https://arxiv.org/abs/1904.09751), and epsilon (Hewitt et al., 2022, "Truncation
Sampling as Language Model Desmoothing", https://arxiv.org/abs/2210.15191).

Shapes: B sentences, A unfinished sentences, K samples per sentence, N = A K rows (row n belongs to
sentence n // K), L drawn length, T most tokens including the end symbol, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_seq.search.hypotheses import Hypothesis, SearchStep, fill_holes
from ds_seq.search.penalties import LengthPenalty
from ds_seq.search.top_k import top_k
from ds_seq.text.tokenizer import Symbols

_NEVER = -math.inf
_USUAL_NUCLEUS = 256
"""Number of tokens that are sorted at first; a nucleus rarely has more."""


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: the random numbers and at most one truncation.

    A draw takes one number between 0 and 1 from a counter-based generator (Philox: Salmon et al.,
    2011, "Parallel random numbers: as easy as 1, 2, 3") and looks it up in the running sum of the
    probabilities. The number is determined by the seed, the number of the sentence in the whole
    input, the number of the sample and the step. It does not depend on the batch, the order of the
    batches, the number of ranks or the number of samples.

    Attributes:
        top_k: draw only from the k most probable tokens, and those tied with the last; 0 for all.
        top_p: draw only from the smallest set of most probable tokens whose probabilities sum to at
            least this, and those tied with the last; 1 for all.
        epsilon: draw only from tokens more probable than this, and the most probable; 0 for all.
        seed: seed of the random numbers.

    Raises:
        ValueError: a truncation is out of range, or there is more than one.
    """

    top_k: int
    top_p: float
    epsilon: float
    seed: int

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.epsilon < 1:
            raise ValueError(f"impossible truncation in {self}")
        if (self.top_k > 0) + (self.top_p < 1) + (self.epsilon > 0) > 1:
            raise ValueError(f"more than one truncation in {self}")

    def truncate(self, probs: Tensor) -> None:
        """Set the probability of truncated tokens to 0, in place.

        Args:
            probs: probabilities (N, V); a row need not be normalized.
        """
        if self.top_k > 0:
            least = top_k(probs, min(self.top_k, probs.size(1)))[0][:, -1:]
            probs.masked_fill_(probs < least, 0.0)
        elif self.top_p < 1:
            probs.masked_fill_(probs < _nucleus_margin(probs, self.top_p), 0.0)
        elif self.epsilon > 0:
            few = probs <= self.epsilon * probs.sum(1, keepdim=True)
            probs.masked_fill_(few & (probs < probs.amax(1, keepdim=True)), 0.0)

    def numbers(self, sentence: int, sample: int, count: int) -> NDArray[np.float64]:
        """Return the random numbers (count,) in [0, 1) for the steps of a sample."""
        source = np.random.Philox(
            key=np.array([self.seed, sentence], np.uint64),
            counter=np.array([0, 0, 0, sample], np.uint64),
        )
        # NumPy guarantees that raw numbers stay the same in all versions
        raw: NDArray[np.uint64] = source.random_raw(count)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _nucleus_margin(probs: Tensor, p: float) -> Tensor:
    """Return the lowest probability (N, 1) in the nucleus of each row of (N, V)."""
    enough = p * probs.sum(1, keepdim=True)  # (N, 1)
    best = top_k(probs, min(_USUAL_NUCLEUS, probs.size(1)))[0]
    margin = _least_inside(best, enough)
    wide = (best.sum(1) < enough.squeeze(1)).nonzero().squeeze(1)  # sorting all rows is slow
    if len(wide):
        margin[wide] = _least_inside(probs[wide].sort(1, descending=True)[0], enough[wide])
    return margin


def _least_inside(ranked: Tensor, enough: Tensor) -> Tensor:
    """Return the lowest (N, 1) of the top probabilities of rows (N, M) whose sum is `enough`."""
    before = ranked.cumsum(1) - ranked  # total probability of the more probable tokens
    return ranked.masked_fill(before >= enough, math.inf).amin(1, keepdim=True)


class ActiveSamples:
    """The samples of the sentences that have at least one unfinished sample.

    Args:
        sampling: how to draw tokens.
        sentences: numbers of the B sentences in the whole input.
        num_samples: number of samples K per sentence.
        limits: most tokens of a sample before the end symbol, (B,).
        symbols: special symbols of the target, for the start and end symbols.
        penalty: divisor of the scores.

    Attributes:
        length: drawn length L.
        tokens: tokens (A, K, L) drawn so far.
    """

    def __init__(
        self,
        sampling: Sampling,
        sentences: Sequence[int],
        num_samples: int,
        limits: Tensor,
        symbols: Symbols,
        penalty: LengthPenalty,
    ) -> None:
        self.length = 0
        self.tokens = limits.new_empty(len(sentences), num_samples, 0)
        self._limits = limits
        self._start, self._end = symbols.start, symbols.eos
        self._penalty = penalty
        self._sampling = sampling
        self._places = torch.arange(len(sentences), device=limits.device)  # (A,) in the batch
        self._ended = limits.new_zeros(len(sentences), num_samples, dtype=torch.bool)  # (A, K)
        self._scores = torch.empty(self.tokens.shape, device=limits.device)  # (A, K, L)
        most = int(limits.max()) + 1 if len(sentences) else 0
        drawn = [
            [sampling.numbers(sentence, sample, most) for sample in range(num_samples)]
            for sentence in sentences
        ]
        numbers = np.array(drawn, np.float64).reshape(len(sentences), num_samples, most)
        self._numbers = torch.from_numpy(numbers).to(limits.device)  # (A, K, T)
        self._finished: list[tuple[Tensor, Tensor, Tensor]] = []  # places, tokens, scores

    @property
    def active(self) -> bool:
        """Whether any sentence is unfinished."""
        return len(self._places) > 0

    def last_tokens(self) -> Tensor:
        """Return the newest token of each sample (N,), at first the start symbol."""
        if self.length == 0:
            return self.tokens.new_full((self._ended.numel(),), self._start)
        return self.tokens[:, :, -1].flatten()

    def advance(self, log_probs: Tensor, end_scores: Tensor) -> SearchStep:
        """Extend each sample by one token; what ended samples receive is ignored.

        Args:
            log_probs: log-probabilities (N, V) of the next token; -inf where a token is ruled out.
            end_scores: log-probabilities (N,) of the end symbol, for samples that must end.
        """
        shape = self._ended.shape
        chosen, possible = self._choose(log_probs)
        scores = log_probs.gather(1, chosen[:, None]).squeeze(1).masked_fill(~possible, _NEVER)
        at_limit = self._limits.le(self.length)[:, None]  # (A, 1)
        ending = at_limit | ~possible.view(shape)
        scores = torch.where(at_limit, end_scores.view(shape), scores.view(shape))
        tokens = chosen.view(shape).masked_fill(ending, self._end)
        scores = scores.nan_to_num(nan=_NEVER, neginf=_NEVER)
        self.tokens = torch.cat([self.tokens, tokens[:, :, None]], dim=2)
        self._scores = torch.cat([self._scores, scores[:, :, None]], dim=2)
        self._ended = self._ended | tokens.eq(self._end)
        self.length += 1
        rows = torch.arange(tokens.numel(), device=tokens.device)
        done = self._ended.all(1)
        if not done.any():
            return SearchStep(None, None, rows, tokens.flatten())
        kept = self._keep(done)
        rows = rows.view(shape).index_select(0, kept)
        return SearchStep(kept, None, rows.flatten(), self.tokens[:, :, -1].flatten())

    def _choose(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token (N,) for each row of (N, V); also return whether any is possible (N,)."""
        # relative to the best token: guides may leave only tokens whose probability underflows
        probs = (log_probs - log_probs.amax(1, keepdim=True)).exp_().nan_to_num_(nan=0.0)
        self._sampling.truncate(probs)
        # Running sums in the order of the ids, not of the probabilities: in the latter, a rounding
        # difference between batches could swap two tokens and change the draw completely.
        sums = probs.cumsum(1, dtype=torch.float64)
        total = sums[:, -1:]
        # below the total even after rounding: the largest number is 1 - 2 ** -53
        wanted = self._numbers[:, :, self.length].reshape(-1, 1) * total
        chosen = torch.searchsorted(sums, wanted, right=True).squeeze(1)
        possible = total.squeeze(1) > 0
        return chosen.masked_fill(~possible, 0), possible

    def _keep(self, done: Tensor) -> Tensor:
        """Store the sentences marked in `done` (A,) as finished and return the others."""
        self._finished.append((self._places[done], self.tokens[done], self._scores[done]))
        kept = fill_holes(done)
        self.tokens, self._scores = self.tokens[kept], self._scores[kept]
        self._limits, self._places = self._limits[kept], self._places[kept]
        self._ended, self._numbers = self._ended[kept], self._numbers[kept]
        return kept

    def results(self) -> list[list[Hypothesis]]:
        """Return the samples of each of the B sentences, in the order of their numbers."""
        samples: dict[int, list[Hypothesis]] = {}
        for places, tokens, scores in self._finished:
            for place, drawn, drawn_scores in zip(
                places.tolist(), tokens.tolist(), scores.tolist(), strict=True
            ):
                samples[place] = [
                    _hypothesis(*sample, self._end, self._penalty)
                    for sample in zip(drawn, drawn_scores, strict=True)
                ]
        return [samples[place] for place in range(len(samples))]


def _hypothesis(
    tokens: list[int], scores: list[float], end: int, penalty: LengthPenalty
) -> Hypothesis:
    """Return a sample (L,) up to its first end symbol."""
    length = tokens.index(end) + 1
    total = math.fsum(scores[:length])
    return Hypothesis(tokens[: length - 1], total / penalty.divisor(length), scores[:length])
