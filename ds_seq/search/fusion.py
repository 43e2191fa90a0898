"""Shallow fusion: a language model of the target has a say in each step of a beam search.

Gulcehre et al., 2015, "On using monolingual corpora in neural machine translation",
https://arxiv.org/abs/1503.03535. The score of a token is its log-probability plus the weighted
log-probability that the language model gives it after the same hypothesis; sums are not normalized
again, as in fairseq.

Shapes: B sentences, A unfinished sentences, K width of the search, N = A K hypotheses (row n
belongs to sentence n // K), L decoded length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds_seq.search.beam_search import Cache, Decodable


@dataclass(frozen=True)
class Fusion:
    """Adds the log-probabilities of a language model, as a guide of the search.

    Attributes:
        model: the language model, in evaluation mode, with the vocabulary of the target.
        weight: factor of its log-probabilities; at least 0, because early stopping relies on sums
            that never grow.
        start_id: symbol with which its texts begin.
    """

    model: Decodable[Any, Any]
    weight: float
    start_id: int

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} is negative")

    def room(self, number: int) -> int:
        """Return 0: no extra length is needed."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _FusionGuide:
        """Return a guide for a batch of empty hypotheses; see `GuideMaker.start`."""
        starts = limits.new_full((len(numbers), 1), self.start_id)
        encoded = self.model.encode(starts, torch.ones_like(starts, dtype=torch.bool))
        cache = self.model.start_cache(encoded, width, int(limits.max()) + 1)
        return _FusionGuide(self, cache, width)


class _FusionGuide:
    """The language model's state for the hypotheses of one batch."""

    def __init__(self, fusion: Fusion, cache: Cache, width: int) -> None:
        self._fusion, self._cache, self._width = fusion, cache, width

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Add the language model's log-probabilities of the next token, in place."""
        if tokens.size(2):
            last = tokens[:, :, -1].flatten()
        else:
            last = tokens.new_full((len(log_probs),), self._fusion.start_id)
        logits = self._fusion.model.decode_step(last, self._cache)
        log_probs += self._fusion.weight * logits.log_softmax(-1, dtype=torch.float32)

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Let the state follow the hypotheses; `tokens` (A, K) are read in the next step."""
        width = self._width
        kept = rows[::width] // width
        self._cache.keep_sentences(kept)
        if width > 1:
            places = torch.arange(len(kept), device=rows.device).repeat_interleave(width)
            self._cache.reorder(places * width + rows % width)
