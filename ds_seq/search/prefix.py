"""Prefix-constrained decoding: translations that begin with given tokens.

Shapes: B sentences, A unfinished sentences, K width of the search, N = A K hypotheses, P longest
prefix of a batch, L decoded length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FREE = -1


@dataclass(frozen=True)
class Prefixes:
    """Forces each translation to begin with given tokens.

    The tokens are part of the hypothesis, its length and its score, which uses the model's own
    probabilities for them. They take precedence over length limits and n-gram blocking. The
    language tag with which a multilingual model begins its translations is a prefix of one token.

    Attributes:
        own: prefix of each sentence of the whole input by its number, without end symbol; it may be
            empty. None if no sentence has its own prefix.
        common: tokens that begin all translations, before the sentence's own prefix.
    """

    own: Sequence[Sequence[int]] | Mapping[int, Sequence[int]] | None = None
    common: Sequence[int] = ()

    def room(self, number: int) -> int:
        """Return the number of tokens of the prefix."""
        return len(self._prefix(number))

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _PrefixGuide:
        """Return a guide with the prefixes of a batch."""
        prefixes = [self._prefix(number) for number in numbers]
        longest = max(map(len, prefixes), default=0)
        rows = [[*prefix, *[_FREE] * (longest - len(prefix))] for prefix in prefixes]
        table = torch.tensor(rows, dtype=torch.int64, device=limits.device)
        return _PrefixGuide(table.view(len(prefixes), longest), width)

    def _prefix(self, number: int) -> list[int]:
        return [*self.common, *(() if self.own is None else self.own[number])]


class _PrefixGuide:
    """Guide that forces the prefixes of a batch.

    Args:
        prefixes: token ids (B, P) of the prefixes, padded with `_FREE`.
        width: width K of the search.
    """

    def __init__(self, prefixes: Tensor, width: int) -> None:
        self._prefixes = prefixes  # (A, P)
        self._width = width
        self._length = 0

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        if self._length >= self._prefixes.size(1):
            return
        forced = self._prefixes[:, self._length].repeat_interleave(self._width)  # (N,)
        rows = forced.ne(_FREE).nonzero().squeeze(1)
        columns = forced[rows]
        scores = log_probs[rows, columns]
        log_probs[rows] = -math.inf
        log_probs[rows, columns] = scores

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        self._length += 1
        if self._length < self._prefixes.size(1):
            self._prefixes = self._prefixes[rows[:: self._width] // self._width]
