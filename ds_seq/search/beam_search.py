"""Batched beam search with the semantics of fairseq's sequence generator, and batched sampling.

Sutskever et al., 2014, "Sequence to Sequence Learning with Neural Networks",
https://arxiv.org/abs/1409.3215; length penalty and n-gram blocking as in fairseq.

Shapes: B sentences, A unfinished sentences, K beam width, N = A K hypotheses (row n belongs to
sentence n // K), C = 2 K candidates, L decoded length, V vocabulary, S source length, W n-grams
decoded so far.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ds_seq.activity import mark
from ds_seq.modules import native
from ds_seq.modules.native_cache import NativeCache
from ds_seq.modules.native_step import NativeMap
from ds_seq.search.guides import Guide, GuideMaker, Plain, SelectionMaker
from ds_seq.search.hypotheses import Active, ActiveBeams, Hypothesis
from ds_seq.search.native_search import NativeSearch
from ds_seq.search.penalties import LengthPenalty, LengthPenaltyForm
from ds_seq.search.prefix import Prefixes
from ds_seq.search.sampling import ActiveSamples, Sampling
from ds_seq.text.tokenizer import Symbols

_NEVER = -math.inf

AnyRank = Callable[[bool], bool]
"""Returns whether a flag is set on any rank; a collective, so every rank must call it."""


class Cache(Protocol):
    """The state of a model's incremental decoding; see `ds_seq.models.cache.DecoderCache`."""

    def reorder(self, rows: Tensor) -> None:
        """Make hypothesis n a continuation of hypothesis `rows[n]`."""

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep only the sentences `kept`, with all their hypotheses."""


EncodedT = TypeVar("EncodedT")
CacheT = TypeVar("CacheT", bound=Cache)


class Decodable(Protocol[EncodedT, CacheT]):
    """The part of a model that the search needs; see `ds_seq.models.protocol`."""

    def encode(self, source: Tensor, source_mask: Tensor) -> EncodedT:
        """Encode source tokens (B, S); the mask is True at real tokens."""

    def start_cache(self, encoded: EncodedT, beam: int, max_length: int) -> CacheT:
        """Return a cache for at most `max_length` steps with `beam` hypotheses per sentence."""

    def decode_step(self, tokens: Tensor, cache: CacheT) -> Tensor:
        """Feed one token to each hypothesis (N,) and return the logits (N, V) of the next token.

        The search overwrites the logits.
        """


@dataclass(frozen=True)
class BeamSearch:
    """Beam search or sampling with fixed settings.

    In each step, the search considers the 2 K best continuations of each sentence. Those among the
    best K that end are finished; the best K that do not end are continued. A sentence is done when
    K of its hypotheses are finished. The score of a finished hypothesis is the sum of its
    log-probabilities divided by the `LengthPenalty` of its length; both include the end symbol.

    The result for a sentence does not depend on its batch: its limits are computed from its own
    length (fairseq uses the width of the padded batch).

    With `sampling`, there is no search: `num_best` translations are drawn independently, under the
    same limits and with the same tokens ruled out. They are scored like hypotheses of a search, by
    the probabilities before the truncation, and are returned in the order of the draws.

    Attributes:
        symbols: special symbols of the target.
        beam: beam width K; 1 is greedy search.
        length_penalty: exponent of the length; higher values favor longer translations.
        length_penalty_form: formula of the length penalty; see `LengthPenalty`.
        unk_penalty: subtracted from the log-probability of the unknown symbol; at least 0, because
            early stopping relies on sums of log-probabilities that never grow.
        temperature: divisor of the logits; values above 1 flatten the distribution, values below 1
            sharpen it.
        max_len_a: a translation has at most `max_len_a * x + max_len_b` tokens plus the end symbol,
            for a source of x tokens including its end symbol.
        max_len_b: see `max_len_a`.
        min_len: fewest tokens before the end symbol; the limit of `max_len_a` takes precedence.
        no_repeat_ngram: size of the n-grams that must not occur twice; 0 allows all repetitions.
        num_best: number of hypotheses to return. A search stops as soon as no open hypothesis can
            become one of them, so a smaller number saves steps.
        sampling: how to draw tokens; None searches with a beam.
        selection: maker of the candidate ranking of a beam search; see `ds_seq.search.guides`.
        guides: makers of further constraints; see `ds_seq.search.guides`. They take precedence over
            length limits, and over n-gram blocking where they leave a single token.
        max_positions: most tokens that the decoder accepts, including the end symbol; None for no
            limit.
        prompts: whether a source is a prompt, with which all its hypotheses begin (see `Prefixes`),
            as for a language model. `max_len_a` and `max_len_b` then bound what follows it.
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
    prompts: bool = False

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
    def settings(self) -> dict[str, Any]:
        """Return the fields that each beam search has, by name; not those of a subclass."""
        return {each.name: vars(self)[each.name] for each in fields(BeamSearch)}

    @property
    def width(self) -> int:
        """Number of hypotheses per sentence that the model decodes in parallel."""
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
        """Search for translations of a batch.

        Args:
            model: the model, in evaluation mode.
            source: source ids (B, S), each sentence with its end symbol, padded on the right.
            source_mask: (B, S) bool, True at real tokens.
            any_rank: required if a forward pass is a collective of all ranks (expert parallelism,
                ZeRO-3). Every rank then takes as many steps as the slowest, decoding a spare
                hypothesis when its own search is over. `source` may then have shape (0, S), on a
                rank that has no sentence but must take part.
            numbers: numbers (B,) of the sentences in the whole input, which seed the random
                numbers of `sampling`; default 0 to B - 1.

        Returns:
            The `num_best` best hypotheses of each sentence, the best first. There may be fewer if
            fewer than `beam` hypotheses exist, but there is at least one. With `sampling`, always
            `num_best` hypotheses in the order of the draws.
        """
        if self.prompts:
            forced = self._forcing(source, source_mask, numbers)
            return forced.search(model, source, source_mask, any_rank, numbers)
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
        if (scores := self._native_scores(model, cache, any_rank)) is not None:
            assert isinstance(cache, NativeCache)
            settings = self.min_len, self.unk_penalty, self.temperature
            native_search = NativeSearch(
                cache, scores, limits, self.num_best, self.symbols, self._penalty, settings
            )
            return native_search.run()
        spare = None if any_rank is None else _SpareSearch(self, model, cache, source, max_length)
        hypotheses, guides = self._start(limits[:num_sentences], sentences)
        while hypotheses.active if any_rank is None else any_rank(hypotheses.active):
            mark()
            if hypotheses.active:
                logits = model.decode_step(hypotheses.last_tokens(), cache)
                self._advance(hypotheses, self._log_probs(logits), guides, cache)
            elif spare is not None:
                spare.step()
        return hypotheses.results()

    def _native_scores(
        self, model: Decodable[EncodedT, CacheT], cache: Cache, any_rank: AnyRank | None
    ) -> NativeMap | None:
        """Return the scores of the vocabulary of a search in C, or None if it cannot be one."""
        if not isinstance(cache, NativeCache) or cache.owner is not model or any_rank is not None:
            return None
        is_plain = isinstance(self.selection, Plain) and not self.guides and self.sampling is None
        return cache.scores if is_plain and self.no_repeat_ngram == 0 else None

    def _forcing(self, source: Tensor, mask: Tensor, numbers: Sequence[int] | None) -> BeamSearch:
        """Return the search whose hypotheses begin with these prompts (B, S)."""
        around = len(self.symbols.opening), 1 + len(self.symbols.closing)
        rows = zip(
            numbers or range(len(source)), source.tolist(), mask.sum(1).tolist(), strict=True
        )
        prompts = {number: row[around[0] : size - around[1]] for number, row, size in rows}
        guides = (*self.guides, Prefixes(prompts))
        # the limits are those of whole texts, which have the prompt in them
        return replace(self, guides=guides, max_len_a=self.max_len_a + 1.0, prompts=False)

    def _start(self, limits: Tensor, numbers: Sequence[int]) -> tuple[Active, list[Guide]]:
        """Return empty hypotheses of the sentences `numbers` (B,) with limits (B,), and guides."""
        guides = [maker.start(numbers, self.width, limits) for maker in self.guides]
        symbols, penalty = self.symbols, self._penalty
        if self.sampling is not None:
            samples = ActiveSamples(self.sampling, numbers, self.num_best, limits, symbols, penalty)
            return samples, guides
        selection = self.selection.start(numbers, self.width, limits)
        beams = ActiveBeams(limits, self.beam, self.num_best, symbols, penalty, selection)
        return beams, [*guides, selection]

    def _length_limits(self, source_mask: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the most tokens before the end symbol of each sentence, (B,) int64."""
        lengths = source_mask.sum(1)
        # in double precision: in single precision, 1.2 * 5 is less than 6
        limits = (lengths.double() * self.max_len_a + self.max_len_b).long()
        makers = (*self.guides, self.selection)
        rooms = [sum(maker.room(number) for maker in makers) for number in numbers]
        if any(rooms):
            limits = limits.maximum(limits.new_tensor(rooms))
        most = None if self.max_positions is None else max(self.max_positions - 1, 1)
        return limits.clamp(min=1, max=most)

    def _log_probs(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (N, V) in float32, in the memory of the logits if possible.

        On a CPU, a large log-softmax spends most of its time on fresh memory pages.
        """
        logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if (log_probs := native.log_softmax(logits)) is not None:
            return log_probs
        return torch.log_softmax(logits, dim=-1, out=logits)

    def _advance(
        self, hypotheses: Active, log_probs: Tensor, guides: Sequence[Guide], cache: Cache
    ) -> None:
        """Take one step, given log-probabilities (N, V) of the next token; they are overwritten."""
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
        """Rule out tokens and penalize the unknown symbol, in place."""
        for token in self.symbols.never_generated:
            log_probs[:, token] = _NEVER
        if hypotheses.length < self.min_len:
            log_probs[:, self.symbols.eos] = _NEVER
        if self.unk_penalty > 0:
            log_probs[:, self.symbols.unk] -= self.unk_penalty
        if self.no_repeat_ngram > 0:
            # a token that is the only one allowed by the guides is taken even if it repeats
            forced = log_probs.isfinite().sum(1) == 1 if self.guides else None  # (N,)
            tokens = hypotheses.tokens.flatten(0, 1)
            block_repeated_ngrams(log_probs, tokens, self.no_repeat_ngram, forced)


class _SpareSearch(Generic[EncodedT, CacheT]):
    """Dummy steps for a rank whose search is over while other ranks continue.

    Args:
        search: the search, for its width and start symbol.
        model: the model that takes the steps.
        cache: cache of the real search, at length 0.
        source: source of the real search, for its device.
        max_length: number of steps for which the cache was made.
    """

    def __init__(
        self,
        search: BeamSearch,
        model: Decodable[EncodedT, CacheT],
        cache: CacheT,
        source: Tensor,
        max_length: int,
    ) -> None:
        # A copy, because starting another cache may itself be a collective (ZeRO-3).
        self._fresh = copy.deepcopy(cache)
        self._fresh.keep_sentences(source.new_zeros(1))
        self._cache = copy.deepcopy(self._fresh)
        self._model = model
        self._tokens = source.new_full((search.width,), search.symbols.start)
        self._max_length = max_length
        self._steps = 0

    def step(self) -> None:
        """Run one decoder step; a full cache is reset, since other ranks may take more steps."""
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
