"""A plain beam search whose steps are calls into C (`ds_seq/modules/native_search.c`).

It does what `ActiveBeams` does with the settings that most searches have; with few hypotheses, its
operators took more time than the decoder's step.

Shapes: B sentences, A unfinished sentences, K beam width, F results of a sentence, M most steps,
V vocabulary, D width of the model.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ds_seq.activity import mark
from ds_seq.modules.native_cache import NativeCache
from ds_seq.modules.native_step import NativeMap
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.search.penalties import LengthPenalty
from ds_seq.text.tokenizer import Symbols

_NEVER = -math.inf
_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _Search(ctypes.Structure):
    _fields_ = (  # the structure of native_search.h
        *((name, _NUMBER) for name in ("num_best", "end", "unknown", "num_never", "min_length")),
        ("is_normalized", _NUMBER),
        ("unknown_penalty", ctypes.c_double),
        ("temperature", ctypes.c_double),
        *((name, _ADDRESS) for name in ("never", "limits", "divisors", "newest", "tokens")),
        *((name, _ADDRESS) for name in ("totals", "num_ended", "best_scores", "best_lengths")),
        *((name, _ADDRESS) for name in ("best_tokens", "best_totals", "sums", "rows", "columns")),
        *((name, _ADDRESS) for name in ("states", "logits")),
    )


class NativeSearch:
    """A batch of beam searches.

    Args:
        cache: cache of the model at length 0.
        scores: scores of the vocabulary.
        limits: most tokens of a hypothesis before the end symbol, (B,).
        num_best: number of hypotheses to return per sentence, F.
        symbols: special symbols of the target.
        penalty: divisor of the score of a finished hypothesis.
        settings: fewest tokens, penalty of the unknown symbol, temperature; see `BeamSearch`.
    """

    def __init__(
        self,
        cache: NativeCache,
        scores: NativeMap,
        limits: Tensor,
        num_best: int,
        symbols: Symbols,
        penalty: LengthPenalty,
        settings: tuple[int, float, float],
    ) -> None:
        self._cache, self._scores, self._num_best = cache, scores, num_best
        count, beam, steps = len(limits), cache.beam, cache.max_length
        rows, most = count * beam, torch.int32
        min_length, unk_penalty, temperature = settings
        never = torch.tensor(sorted(symbols.never_generated), dtype=torch.int64)
        divisors = [1.0, *(penalty.divisor(length) for length in range(1, steps + 2))]
        totals = torch.full((count, beam, steps + 1), _NEVER)
        totals[:, 0, 0] = 0.0  # at first, one hypothesis per sentence is possible
        self._best_scores = torch.full((count, num_best), _NEVER)
        self._best_lengths = torch.zeros(count, num_best, dtype=most)
        self._best_tokens = torch.empty(count, num_best, steps, dtype=most)
        self._best_totals = torch.empty(count, num_best, steps + 1)
        tensors = (
            never,
            limits.contiguous(),
            torch.tensor(divisors),
            torch.full((rows,), symbols.start),
            torch.empty(count, beam, steps, dtype=most),
            totals,
            torch.zeros(count, dtype=torch.int64),
            *(self._best_scores, self._best_lengths, self._best_tokens, self._best_totals),
            torch.empty(2 * beam),
            torch.empty(2 * beam, dtype=torch.int64),
            torch.empty(2 * beam, dtype=torch.int64),
            torch.empty(rows, cache.decoder.width),
            torch.empty(rows, scores.outputs),
        )
        self._kept = tensors
        numbers = num_best, symbols.eos, symbols.unk, len(never), min_length
        addresses = (x.data_ptr() for x in tensors)
        self._table = _Search(*numbers, penalty.exponent > 0, unk_penalty, temperature, *addresses)

    def run(self) -> list[list[Hypothesis]]:
        """Search; return the `num_best` best hypotheses of each sentence, the best first."""
        cache = self._cache
        tables = ctypes.byref(self._scores.table), ctypes.byref(self._table)

        def step(library: ctypes.CDLL, state: Any) -> int:
            left: int = library.ds_seq_search_step(
                cache.decoder.address, state, *tables, cache.num_sentences
            )
            return left

        while cache.num_sentences:
            mark()
            cache.keep_first(cache.advance(step))
        lengths, scores = self._best_lengths.tolist(), self._best_scores.tolist()
        return [self._results(i, *one) for i, one in enumerate(zip(lengths, scores, strict=True))]

    def _results(
        self, sentence: int, lengths: Sequence[int], scores: Sequence[float]
    ) -> list[Hypothesis]:
        found = []
        for place, (length, score) in enumerate(zip(lengths, scores, strict=True)):
            if score == _NEVER:
                break
            totals = self._best_totals[sentence, place, : length + 1]
            token_scores = totals.diff(prepend=totals.new_zeros(1)).tolist()
            tokens = self._best_tokens[sentence, place, :length].tolist()
            found.append(Hypothesis(tokens, score, token_scores))
        # none is possible if the model has diverged, or if all tokens are ruled out
        return found or [Hypothesis([], _NEVER, [_NEVER])]
