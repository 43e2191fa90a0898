"""Draws from the model's distribution, in place of a search for its likeliest translations.

Truncations: the k most probable tokens (Fan et al., 2018, "Hierarchical Neural Story Generation",
https://arxiv.org/abs/1805.04833), the nucleus (Holtzman et al., 2020, "The Curious Case of Neural
Text Degeneration", https://arxiv.org/abs/1904.09751), and epsilon (Hewitt et al., 2022, "Truncation
Sampling as Language Model Desmoothing", https://arxiv.org/abs/2210.15191).

Shapes: B sentences, A sentences not finished yet, K samples of a sentence, N = A K rows (row n
belongs to sentence n // K), L drawn length, T most tokens with the end symbol, V vocabulary.
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
"""A nucleus rarely has more tokens, and only so many are sorted at first."""


@dataclass(frozen=True)
class Sampling:
    """From which tokens is drawn, and with which random numbers; at most one truncation.

    A draw takes one number between 0 and 1 from a counter-based generator (Philox: Salmon et al.,
    2011, "Parallel random numbers: as easy as 1, 2, 3") and looks it up in the running sum of the
    probabilities. The number belongs to the seed, the sentence's number in the whole input, the
    number of the sample and the step, and to nothing else: not to the batch, not to the order of
    batches, not to the number of ranks, not to how many samples are drawn.

    Attributes:
        top_k: only the k most probable tokens, and those as probable as the last; 0 = all.
        top_p: only the fewest most probable tokens that have at least this probability together,
            and those as probable as the last; 1 = all.
        epsilon: only tokens more probable than this, and always the most probable; 0 = all.
        seed: of the random numbers.
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
        """Set the probability of tokens that are not drawn from to 0.

        Args:
            probs: (N, V) probabilities; a row need not sum to 1, its sum counts as 1.
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
        """The random numbers (count,), at least 0 and less than 1, of a sample's steps."""
        source = np.random.Philox(
            key=np.array([self.seed, sentence], np.uint64),
            counter=np.array([0, 0, 0, sample], np.uint64),
        )
        # of raw numbers NumPy promises that they will always be the same ones
        raw: NDArray[np.uint64] = source.random_raw(count)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _nucleus_margin(probs: Tensor, p: float) -> Tensor:
    """The least probability (N, 1) in the nucleus of each row of (N, V)."""
    enough = p * probs.sum(1, keepdim=True)  # (N, 1)
    best = top_k(probs, min(_USUAL_NUCLEUS, probs.size(1)))[0]
    margin = _least_inside(best, enough)
    wide = (best.sum(1) < enough.squeeze(1)).nonzero().squeeze(1)  # sorting all is slow
    if len(wide):
        margin[wide] = _least_inside(probs[wide].sort(1, descending=True)[0], enough[wide])
    return margin


def _least_inside(ranked: Tensor, enough: Tensor) -> Tensor:
    """The last (N, 1) of the most probable ones in rows (N, M) that together reach `enough`."""
    before = ranked.cumsum(1) - ranked  # what the more probable ones have together
    return ranked.masked_fill(before >= enough, math.inf).amin(1, keepdim=True)


class ActiveSamples:
    """The samples of sentences of which one at least is not finished.

    Args:
        sampling: how to draw.
        sentences: B numbers of the sentences in the whole input.
        num_samples: K.
        limits: (B,) most tokens of a sample before the end symbol.
        symbols: one ends a sample, one is what the model is given before the first token.
        penalty: divides the scores.

    Attributes:
        length: L.
        tokens: (A, K, L).
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
        """Whether there is a sentence that is not finished."""
        return len(self._places) > 0

    def last_tokens(self) -> Tensor:
        """The newest token of each sample (N,), or the start symbol before the first."""
        if self.length == 0:
            return self.tokens.new_full((self._ended.numel(),), self._start)
        return self.tokens[:, :, -1].flatten()

    def advance(self, log_probs: Tensor, end_scores: Tensor) -> SearchStep:
        """Give each sample one more token; those that have ended go on without meaning.

        Args:
            log_probs: (N, V) of the next token, -inf where it is ruled out.
            end_scores: (N,) of the end symbol, where nothing else is possible.
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
        """A token (N,) for each row of (N, V), and whether any is possible (N,)."""
        # relative to the best one: guides may leave only tokens whose probability underflows
        probs = (log_probs - log_probs.amax(1, keepdim=True)).exp_().nan_to_num_(nan=0.0)
        self._sampling.truncate(probs)
        # Running sums in the order of the ids, not of the probabilities: there, a last digit that
        # depends on the batch could swap two tokens and change the draw by much more than itself.
        sums = probs.cumsum(1, dtype=torch.float64)
        total = sums[:, -1:]
        # below the total even when rounded: the numbers end 2 ** -53 before 1
        wanted = self._numbers[:, :, self.length].reshape(-1, 1) * total
        chosen = torch.searchsorted(sums, wanted, right=True).squeeze(1)
        possible = total.squeeze(1) > 0
        return chosen.masked_fill(~possible, 0), possible

    def _keep(self, done: Tensor) -> Tensor:
        """Put the sentences marked in `done` (A,) aside; returns the others."""
        self._finished.append((self._places[done], self.tokens[done], self._scores[done]))
        kept = fill_holes(done)
        self.tokens, self._scores = self.tokens[kept], self._scores[kept]
        self._limits, self._places = self._limits[kept], self._places[kept]
        self._ended, self._numbers = self._ended[kept], self._numbers[kept]
        return kept

    def results(self) -> list[list[Hypothesis]]:
        """The samples of each of the B sentences, in the order in which they are numbered."""
        found: dict[int, list[Hypothesis]] = {}
        for places, tokens, scores in self._finished:
            for place, drawn, drawn_scores in zip(
                places.tolist(), tokens.tolist(), scores.tolist(), strict=True
            ):
                found[place] = [
                    _hypothesis(*sample, self._end, self._penalty)
                    for sample in zip(drawn, drawn_scores, strict=True)
                ]
        return [found[place] for place in range(len(found))]


def _hypothesis(
    tokens: list[int], scores: list[float], end: int, penalty: LengthPenalty
) -> Hypothesis:
    """A sample (L,) up to its first end symbol."""
    length = tokens.index(end) + 1
    total = math.fsum(scores[:length])
    return Hypothesis(tokens[: length - 1], total / penalty.divisor(length), scores[:length])
