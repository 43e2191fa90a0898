"""Beams whose hypotheses differ in more than a word.

Shapes: A sentences not finished yet, K beam width, N = A K hypotheses, C' continuations of a
hypothesis, C = 2 K candidates of a sentence, G groups of M = K / G hypotheses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_seq.search.guides import Candidates, RankedSelection, best_candidates, pick


@dataclass(frozen=True)
class DiverseSiblings:
    """Of continuations of the same hypothesis the second, third, ... best are worth less.

    Li et al., 2016, "A Simple, Fast Diverse Decoding Algorithm for Neural Generation",
    https://arxiv.org/abs/1611.08562. Candidates are preferred by their sum of log-probabilities
    minus `rate` times their rank among their siblings; the rank weighs in this step only, and is
    no part of any score.

    Attributes:
        rate: 0 is plain beam search.
    """

    rate: float

    def room(self, number: int) -> int:
        """Nothing is asked for."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _Siblings:
        """It is the same for every batch."""
        return _Siblings(self.rate)


class _Siblings(RankedSelection):
    def __init__(self, rate: float) -> None:
        self._rate = rate

    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        ranks = torch.arange(totals.size(2), device=totals.device)  # the best one comes first
        return best_candidates(totals, totals - self._rate * ranks, tokens, 2 * totals.size(1))


@dataclass(frozen=True)
class DiverseGroups:
    """Groups of hypotheses, each with a beam of its own, that avoid each other's tokens.

    Vijayakumar et al., 2018, "Diverse Beam Search for Improved Description of Complex Scenes",
    https://arxiv.org/abs/1610.02424, with Hamming diversity. In every step the groups choose one
    after the other. A group prefers candidates by their sum of log-probabilities minus `strength`
    for each candidate with the same token among the M best of the groups before it. That holds for
    this step only, and is no part of any score. Groups that part for a while may meet again: then
    the same hypothesis is found, and listed, more than once.

    Attributes:
        groups: G; divides the beam. 1 is plain beam search.
        strength: 0 makes all groups alike, each a beam search of width M.
        end: the end symbol.
    """

    groups: int
    strength: float
    end: int

    def room(self, number: int) -> int:
        """Nothing is asked for."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _Groups:
        """Groups that have not chosen yet."""
        if width % self.groups:
            raise ValueError(f"{self.groups} groups do not divide a beam of {width}")
        return _Groups(self.groups, self.strength, self.end)


class _Groups(RankedSelection):
    """Hypotheses g M to (g + 1) M - 1 of a sentence belong to group g.

    The 2 K best of each hypothesis are enough: of a group's 2 M best not one can be worse than 2 M
    that nobody has taken and K (G - 1) / G that somebody has.
    """

    def __init__(self, groups: int, strength: float, end: int) -> None:
        self._groups = groups
        self._strength = strength
        self._end = end
        self._empty = True

    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        size = totals.size(1) // self._groups
        if self._empty:  # only the first hypothesis is possible; let every group have one like it
            totals, tokens = totals.clone(), tokens.clone()
            totals[:, ::size], tokens[:, ::size] = totals[:, :1], tokens[:, :1]
            self._empty = False
        taken = tokens.new_empty(len(tokens), 0)  # (A, g M) tokens of the groups before
        choices = []
        for group in range(self._groups):
            mine = slice(group * size, (group + 1) * size)
            own_totals, own_tokens = totals[:, mine], tokens[:, mine]  # (A, M, C')
            rivals = (own_tokens[..., None] == taken[:, None, None]).sum(3)  # (A, M, C')
            values = own_totals - self._strength * rivals
            choice = best_candidates(own_totals, values, own_tokens, 2 * size)  # (A, 2 M)
            taken = torch.cat([taken, choice.tokens[:, :size]], dim=1)
            choices.append(choice._replace(origins=choice.origins + group * size))
        return self._interleave(choices, size)

    def _interleave(self, choices: list[Candidates], size: int) -> Candidates:
        """One order (A, C) of all groups' candidates (A, 2 M), by which each keeps its places.

        First those among the first M of a group that end; then, group by group, the first M that
        do not, which are to go on; then the rest.
        """
        merged = Candidates(*(torch.cat(parts, dim=1) for parts in zip(*choices, strict=True)))
        ends = merged.tokens.eq(self._end).view(-1, self._groups, 2 * size)  # (A, G, 2 M)
        goes_on = ~ends & ((~ends).cumsum(2) <= size)
        finishes = ends & (torch.arange(2 * size, device=ends.device) < size)
        late = 2 - 2 * finishes.long() - goes_on.long()
        order = late.flatten(1).sort(dim=1, stable=True)[1]
        origins = merged.origins.gather(1, order)
        return pick(merged.totals, merged.tokens, origins, order)
