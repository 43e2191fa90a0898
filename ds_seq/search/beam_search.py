"""Batched beam search, with the semantics of fairseq's sequence generator; and sampling.

Sutskever et al., 2014, "Sequence to Sequence Learning with Neural Networks",
https://arxiv.org/abs/1409.3215; length penalty and n-gram blocking as fairseq has them.

Shapes: B sentences, A sentences not finished yet, K beam width, N = A K hypotheses (row n belongs
to sentence n // K), C = 2 K candidates, L decoded length, V vocabulary, S source length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ds_seq.search.guides import Guide, GuideMaker, Plain, SelectionMaker
from ds_seq.search.hypotheses import Active, ActiveBeams, Hypothesis
from ds_seq.search.penalties import LengthPenalty, LengthPenaltyForm
from ds_seq.search.sampling import ActiveSamples, Sampling
from ds_seq.text.tokenizer import Symbols

_NEVER = -math.inf

AnyRank = Callable[[bool], bool]
"""Whether a flag is set on any rank; every rank must call it."""


class Cache(Protocol):
    """What a model remembers of a batch of searches; see `ds_seq.models.cache.DecoderCache`."""

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis rows[n]."""

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep some sentences with all their hypotheses."""


EncodedT = TypeVar("EncodedT")
CacheT = TypeVar("CacheT", bound=Cache)


class Decodable(Protocol[EncodedT, CacheT]):
    """The part of a model that the search needs; see `ds_seq.models.seq2seq`."""

    def encode(self, source: Tensor, source_mask: Tensor) -> EncodedT:
        """Encode source tokens (B, S); the mask is True at real ones."""

    def start_cache(self, encoded: EncodedT, beam: int, max_length: int) -> CacheT:
        """Prepare for at most `max_length` steps with `beam` hypotheses a sentence."""

    def decode_step(self, tokens: Tensor, cache: CacheT) -> Tensor:
        """Feed one token to each hypothesis (N,); return logits of the next (N, V).

        The search overwrites them.
        """


@dataclass(frozen=True)
class BeamSearch:
    """What to search for, and how widely.

    Per sentence and step the 2 K best continuations are looked at. Those among the best K that
    end are finished; the best K that do not end go on. A sentence is done when K hypotheses are
    finished. A finished one scores the sum of its log-probabilities over what `LengthPenalty`
    makes of its length, its end symbol included in both.

    The result for a sentence does not depend on its batch: limits are computed from its own
    length (fairseq takes the width of the padded batch).

    With `sampling` nothing is searched: `num_best` translations are drawn, independently, under the
    same limits and vetoes. They score like hypotheses of a search, by the probabilities that were
    there before the truncation, and are given in the order of the draws.

    Attributes:
        beam: K; 1 is greedy search.
        length_penalty: exponent of the length; higher favors longer translations.
        length_penalty_form: see `LengthPenalty`.
        unk_penalty: taken from the log-probability of the unknown symbol, at least 0: sums of
            log-probabilities must not grow, or searches could not stop early.
        temperature: divides the logits; above 1 for flatter probabilities, below for steeper.
        max_len_a: a translation has at most ``max_len_a * x + max_len_b`` tokens and an end
            symbol, for a source of x tokens with its end symbol.
        max_len_b: see `max_len_a`.
        min_len: fewest tokens before the end symbol, unless `max_len_a` and `max_len_b` say less.
        no_repeat_ngram: no n-gram of this many tokens occurs twice; 0 allows all.
        num_best: how many hypotheses are returned. A search stops as soon as none that is still
            open can become one of them, so asking for fewer saves steps.
        sampling: how to draw, instead of searching with a beam.
        selection: which continuations a search with a beam looks at, and which it prefers.
        guides: what else rules out tokens. Length limits give way to them, and n-gram blocking
            where they leave a single token.
        max_positions: tokens that the decoder can take, end symbol included; None = any number.
        symbols: of the target.
    """

    symbols: Symbols
    beam: int
    length_penalty: float
    length_penalty_form: LengthPenaltyForm
    unk_penalty: float
    temperature: float
    max_len_a: float
    max_len_b: int
    min_len: int
    no_repeat_ngram: int
    num_best: int = 1
    sampling: Sampling | None = None
    selection: SelectionMaker = field(default_factory=Plain)
    guides: tuple[GuideMaker, ...] = ()
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_best <= self.width:
            raise ValueError(f"num_best={self.num_best} is not between 1 and beam={self.beam}")
        if min(self.max_len_a, self.max_len_b, self.min_len, self.no_repeat_ngram) < 0:
            raise ValueError(f"negative limit in {self}")
        if self.unk_penalty < 0:
            raise ValueError(f"unk_penalty={self.unk_penalty} is negative")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} is not above 0")
        if self.sampling is not None and self.selection != Plain():
            raise ValueError(f"sampling does not go together with selection={self.selection}")

    @property
    def width(self) -> int:
        """Hypotheses of a sentence that the model decodes side by side."""
        return self.beam if self.sampling is None else self.num_best

    @property
    def _penalty(self) -> LengthPenalty:
        return LengthPenalty(self.length_penalty, self.length_penalty_form)

    @torch.no_grad()
    def search(
        self,
        model: Decodable[EncodedT, CacheT],
        source: Tensor,
        source_mask: Tensor,
        any_rank: AnyRank | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """Search translations of a batch.

        Args:
            model: in evaluation mode.
            source: ids (B, S), each sentence with the end symbol, padding on the right.
            source_mask: (B, S) bool, True at real tokens.
            any_rank: to be given when a forward pass is a collective of all ranks (expert
                parallelism, ZeRO-3): every rank then makes as many steps as the slowest, with a
                spare hypothesis when its own search is over. `source` may then be of shape (0, S),
                on a rank that has no sentence but must take part.
            numbers: of the sentences (B,) in the whole input, to which the random numbers of
                `sampling` belong; default 0 to B - 1.

        Returns:
            For each sentence the `num_best` best hypotheses, the best first. There may be fewer
            where `beam` hypotheses do not exist; there is at least one. With `sampling`, always
            `num_best` in the order of the draws.
        """
        num_sentences = len(source)
        if num_sentences == 0:
            if any_rank is None:
                return []
            source = source.new_full((1, 1), self.symbols.eos)
            source_mask = torch.ones_like(source, dtype=torch.bool)
        sentences = range(num_sentences) if numbers is None else numbers
        limits = self._length_limits(source_mask, sentences)
        max_length = int(limits.max()) + 1
        cache = model.start_cache(model.encode(source, source_mask), self.width, max_length)
        spare = None if any_rank is None else _SpareSearch(self, model, cache, source, max_length)
        hypotheses, guides = self._start(limits[:num_sentences], sentences)
        while hypotheses.active if any_rank is None else any_rank(hypotheses.active):
            if hypotheses.active:
                logits = model.decode_step(hypotheses.last_tokens(), cache)
                self._advance(hypotheses, self._log_probs(logits), guides, cache)
            elif spare is not None:
                spare.step()
        return hypotheses.results()

    def _start(self, limits: Tensor, numbers: Sequence[int]) -> tuple[Active, list[Guide]]:
        """Empty hypotheses of the sentences `numbers` (B,), with limits (B,), and their guides."""
        guides = [maker.start(numbers, self.width, limits) for maker in self.guides]
        symbols, penalty = self.symbols, self._penalty
        if self.sampling is not None:
            samples = ActiveSamples(self.sampling, numbers, self.num_best, limits, symbols, penalty)
            return samples, guides
        selection = self.selection.start(numbers, self.width, limits)
        beams = ActiveBeams(limits, self.beam, self.num_best, symbols, penalty, selection)
        return beams, [*guides, selection]

    def _length_limits(self, source_mask: Tensor, numbers: Sequence[int]) -> Tensor:
        """Most tokens before the end symbol, for each sentence: (B,) int64."""
        lengths = source_mask.sum(1)
        # double precision: in single, 1.2 * 5 falls short of 6
        limits = (lengths.double() * self.max_len_a + self.max_len_b).long()
        makers = (*self.guides, self.selection)
        rooms = [sum(maker.room(number) for maker in makers) for number in numbers]
        if any(rooms):
            limits = limits.maximum(limits.new_tensor(rooms))
        most = None if self.max_positions is None else max(self.max_positions - 1, 1)
        return limits.clamp(min=1, max=most)

    def _log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities (N, V) in single precision, in the memory of the logits if possible.

        On a CPU most of the time of a large log-softmax goes into fetching fresh memory pages.
        """
        logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return torch.log_softmax(logits, dim=-1, out=logits)

    def _advance(
        self, hypotheses: Active, log_probs: Tensor, guides: Sequence[Guide], cache: Cache
    ) -> None:
        """Take one step, given log-probabilities (N, V) of the next token, which are changed."""
        for guide in guides:
            guide.restrict(log_probs, hypotheses.tokens)
        end_scores = log_probs[:, self.symbols.eos].clone()  # (N,)
        self._veto(hypotheses, log_probs)
        step = hypotheses.advance(log_probs, end_scores)
        if not hypotheses.active:
            return
        if step.kept is not None:
            cache.keep_sentences(step.kept)
        if step.rows is not None and self.width > 1:
            cache.reorder(step.rows)
        for guide in guides:
            guide.follow(step.past_rows, step.tokens)

    def _veto(self, hypotheses: Active, log_probs: Tensor) -> None:
        """Rule out tokens and punish the unknown one, in place; the others stay as they are."""
        for token in self.symbols.never_generated:
            log_probs[:, token] = _NEVER
        if hypotheses.length < self.min_len:
            log_probs[:, self.symbols.eos] = _NEVER
        if self.unk_penalty > 0:
            log_probs[:, self.symbols.unk] -= self.unk_penalty
        if self.no_repeat_ngram > 0:
            # what guides leave no alternative to is taken, repeated or not
            forced = log_probs.isfinite().sum(1) == 1 if self.guides else None  # (N,)
            tokens = hypotheses.tokens.flatten(0, 1)
            block_repeated_ngrams(log_probs, tokens, self.no_repeat_ngram, forced)


class _SpareSearch(Generic[EncodedT, CacheT]):
    """Steps without meaning, for a rank whose search is over while others go on.

    Args:
        search: gives width and start symbol.
        model: makes the steps.
        cache: of the real search, at length 0.
        source: of the real search, for its device.
        max_length: steps for which the cache was made.
    """

    def __init__(
        self,
        search: BeamSearch,
        model: Decodable[EncodedT, CacheT],
        cache: CacheT,
        source: Tensor,
        max_length: int,
    ) -> None:
        # A copy, because starting another cache may be a collective too (ZeRO-3).
        self._fresh = copy.deepcopy(cache)
        self._fresh.keep_sentences(source.new_zeros(1))
        self._cache = copy.deepcopy(self._fresh)
        self._model = model
        self._tokens = source.new_full((search.width,), search.symbols.start)
        self._max_length = max_length
        self._steps = 0

    def step(self) -> None:
        """Run one decoder step; others may make more steps than the cache has room for."""
        if self._steps == self._max_length:
            self._cache = copy.deepcopy(self._fresh)
            self._steps = 0
        self._model.decode_step(self._tokens, self._cache)
        self._steps += 1


def block_repeated_ngrams(
    log_probs: Tensor, tokens: Tensor, size: int, exempt: Tensor | None = None
) -> None:
    """Rule out, in place, every token that would complete an n-gram for the second time.

    Args:
        log_probs: log-probabilities (N, V) of the next token; changed in place.
        tokens: tokens (N, L) decoded so far.
        size: number of tokens in an n-gram.
        exempt: (N,) bool, hypotheses that may repeat n-grams; None for no hypothesis.
    """
    length = tokens.size(1)
    num_windows = length - size + 1  # n-grams decoded so far
    if num_windows < 1:
        return
    repeated = torch.ones_like(tokens[:, :num_windows], dtype=torch.bool)  # (N, W)
    for offset in range(size - 1):
        newest = tokens[:, length - size + 1 + offset, None]
        repeated &= tokens[:, offset : offset + num_windows] == newest
    if exempt is not None:
        repeated &= ~exempt[:, None]
    last = tokens[:, size - 1 :]  # (N, W): the last token of each n-gram
    penalty = torch.zeros_like(last, dtype=log_probs.dtype).masked_fill_(repeated, -math.inf)
    log_probs.scatter_add_(1, last, penalty)
