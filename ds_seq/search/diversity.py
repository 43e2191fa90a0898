"""Diverse beam search: beams whose hypotheses differ in more than a word.

Shapes: A unfinished sentences, K beam width, N = A K hypotheses, C' continuations per hypothesis,
C = 2 K candidates per sentence, G groups of M = K / G hypotheses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_seq.search.guides import Candidates, RankedSelection, best_candidates, pick


@dataclass(frozen=True)
class DiverseSiblings:
    """Penalizes the second, third, ... best continuation of the same hypothesis.

    Li et al., 2016, "A Simple, Fast Diverse Decoding Algorithm for Neural Generation",
    https://arxiv.org/abs/1611.08562. Candidates are ranked by their sum of log-probabilities minus
    `rate` times their rank among their siblings. The penalty applies to the current step only and
    is not part of any score.

    Attributes:
        rate: penalty per rank; 0 is plain beam search.
    """

    rate: float

    def room(self, number: int) -> int:
        """Return 0: diversity needs no extra length."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _Siblings:
        """Return a selection; it keeps no state."""
        return _Siblings(self.rate)


class _Siblings(RankedSelection):
    def __init__(self, rate: float) -> None:
        self._rate = rate

    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        ranks = torch.arange(totals.size(2), device=totals.device)  # the best sibling comes first
        return best_candidates(totals, totals - self._rate * ranks, tokens, 2 * totals.size(1))


@dataclass(frozen=True)
class DiverseGroups:
    """Divides the beam into groups that avoid each other's tokens.

    Vijayakumar et al., 2018, "Diverse Beam Search for Improved Description of Complex Scenes",
    https://arxiv.org/abs/1610.02424, with Hamming diversity. In each step, the groups choose one
    after another. A group ranks its candidates by their sum of log-probabilities minus `strength`
    for each candidate with the same token among the M best of the preceding groups. The penalty
    applies to the current step only and is not part of any score. Groups may converge again after
    they have diverged: the same hypothesis is then found, and listed, more than once.

    Attributes:
        groups: number of groups G, a divisor of the beam width; 1 is plain beam search.
        strength: penalty per repeated token; 0 makes all groups equal beam searches of width M.
        end: the end symbol.
    """

    groups: int
    strength: float
    end: int

    def room(self, number: int) -> int:
        """Return 0: diversity needs no extra length."""
        return 0

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _Groups:
        """Return a selection whose groups have not chosen yet.

        Raises:
            ValueError: the number of groups does not divide the beam width.
        """
        if width % self.groups:
            raise ValueError(f"{self.groups} groups do not divide a beam of {width}")
        return _Groups(self.groups, self.strength, self.end)


class _Groups(RankedSelection):
    """Selection in which hypotheses g M to (g + 1) M - 1 of a sentence belong to group g.

    The 2 K best continuations of each hypothesis suffice: the 2 M best candidates of a group are
    among 2 M that no group has taken and K (G - 1) / G that other groups have.
    """

    def __init__(self, groups: int, strength: float, end: int) -> None:
        self._groups = groups
        self._strength = strength
        self._end = end
        self._empty = True

    def rank(self, totals: Tensor, tokens: Tensor) -> Candidates:
        size = totals.size(1) // self._groups
        if self._empty:  # only the first hypothesis is possible; copy it into every group
            totals, tokens = totals.clone(), tokens.clone()
            totals[:, ::size], tokens[:, ::size] = totals[:, :1], tokens[:, :1]
            self._empty = False
        taken = tokens.new_empty(len(tokens), 0)  # (A, g M) tokens of the preceding groups
        choices = []
        for group in range(self._groups):
            members = slice(group * size, (group + 1) * size)
            group_totals, group_tokens = totals[:, members], tokens[:, members]  # (A, M, C')
            rivals = (group_tokens[..., None] == taken[:, None, None]).sum(3)  # (A, M, C')
            values = group_totals - self._strength * rivals
            choice = best_candidates(group_totals, values, group_tokens, 2 * size)  # (A, 2 M)
            taken = torch.cat([taken, choice.tokens[:, :size]], dim=1)
            choices.append(choice._replace(origins=choice.origins + group * size))
        return self._interleave(choices, size)

    def _interleave(self, choices: list[Candidates], size: int) -> Candidates:
        """Merge the groups' candidates (A, 2 M) into one order (A, C) that preserves each group.

        Candidates that end and are among the first M of their group come first; then, group by
        group, the first M that do not end and are to be continued; then the rest.
        """
        merged = Candidates(*(torch.cat(parts, dim=1) for parts in zip(*choices, strict=True)))
        ends = merged.tokens.eq(self._end).view(-1, self._groups, 2 * size)  # (A, G, 2 M)
        goes_on = ~ends & ((~ends).cumsum(2) <= size)
        finishes = ends & (torch.arange(2 * size, device=ends.device) < size)
        late = 2 - 2 * finishes.long() - goes_on.long()
        order = late.flatten(1).sort(dim=1, stable=True)[1]
        origins = merged.origins.gather(1, order)
        return pick(merged.totals, merged.tokens, origins, order)
