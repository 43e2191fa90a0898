"""Finite automata, as tensors, that track which required phrases a hypothesis contains.

Shapes: B sentences, A unfinished sentences, K beam width, U tokens of the phrases, M continuations
considered, T states of an automaton, P distinct phrases, R numbers in a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Phrases = Sequence[Sequence[int]]


class PhraseProgress(Protocol):
    """Tracks how many required tokens hypotheses contain.

    A column below is the index of a token among the U tokens of the phrases, or U for any other
    token.
    """

    def start(self, width: int) -> Tensor:
        """Return the states (A, K, R) of empty hypotheses."""

    def advance(self, states: Tensor, columns: Tensor) -> Tensor:
        """Return the states (A, K, M, R) after `states` (A, K, R) and `columns` (A, K, M)."""

    def needed(self, states: Tensor) -> Tensor:
        """Return how many tokens suffice to complete states (A, ..., R), as (A, ...).

        From every state where the number is not 0, some token leads to a state where it is lower.
        """

    def keep(self, kept: Tensor) -> PhraseProgress:
        """Return the automata of the sentences `kept` (A',) only."""


class InOrder(NamedTuple):
    """Automata of phrases that occur one after another.

    A state is the number of matched tokens: those of complete phrases and of the next phrase.
    If a phrase breaks off, the longest suffix that is a prefix of the phrase still counts (Knuth,
    Morris and Pratt, 1977, "Fast pattern matching in strings").
    """

    after: Tensor
    """(A, T, U + 1) the next state."""
    lengths: Tensor
    """(A,) number of tokens of all phrases together."""

    def start(self, width: int) -> Tensor:
        """Return states in which no token is matched."""
        return self.lengths.new_zeros(len(self.lengths), width, 1)

    def advance(self, states: Tensor, columns: Tensor) -> Tensor:
        """See the method of `PhraseProgress`."""
        return _look_up(self.after, states, columns)[..., None]

    def needed(self, states: Tensor) -> Tensor:
        """Return the number of unmatched tokens; fewer never suffice."""
        return _per_sentence(self.lengths, states[..., 0]) - states[..., 0]

    def keep(self, kept: Tensor) -> InOrder:
        """See the method of `PhraseProgress`."""
        return InOrder(*(tensor[kept] for tensor in self))


class AnyOrder(NamedTuple):
    """Automata of phrases in any order, which may overlap.

    A state is a node of the automaton of the phrases, and how often each phrase has occurred. The
    node is the longest suffix of the hypothesis that is a prefix of a phrase (Aho and Corasick,
    1975, "Efficient string matching: an aid to bibliographic search").
    """

    after: Tensor
    """(A, T, U + 1) the next node."""
    complete: Tensor
    """(A, T, P) whether the phrase ends at the node."""
    begun: Tensor
    """(A, T, P) length of the longest suffix of the node that is a proper prefix of the phrase."""
    wanted: Tensor
    """(A, P) how often each phrase must occur."""
    lengths: Tensor
    """(A, P) number of tokens of each phrase."""

    def start(self, width: int) -> Tensor:
        """Return states at the root, with no phrase counted."""
        num_sentences, num_phrases = self.wanted.shape
        return self.wanted.new_zeros(num_sentences, width, 1 + num_phrases)

    def advance(self, states: Tensor, columns: Tensor) -> Tensor:
        """See the method of `PhraseProgress`."""
        nodes = _look_up(self.after, states, columns)  # (A, K, M)
        counts = states[:, :, None, 1:] + _rows_of(self.complete, nodes)
        counts = counts.minimum(self.wanted[:, None, None])
        return torch.cat([nodes[..., None], counts], dim=3)

    def needed(self, states: Tensor) -> Tensor:
        """Return the length of all missing phrases, less the prefix that the hypothesis ends with.

        If phrases overlap, fewer tokens may suffice.
        """
        missing = _per_sentence(self.wanted, states[..., 1:]) - states[..., 1:]
        begun = _rows_of(self.begun, states[..., 0]) * missing.gt(0)
        tokens = (missing * _per_sentence(self.lengths, missing)).sum(-1)
        return tokens - begun.amax(-1) if begun.size(-1) else tokens

    def keep(self, kept: Tensor) -> AnyOrder:
        """See the method of `PhraseProgress`."""
        return AnyOrder(*(tensor[kept] for tensor in self))


def given_order(
    phrases: Sequence[Phrases], words: Sequence[Sequence[int]], device: torch.device
) -> InOrder:
    """Build the automata of phrases that occur one after another.

    Args:
        phrases: phrases of each of the B sentences.
        words: distinct tokens (B, U) of each sentence's phrases, one column per token.
        device: device of the tables.
    """
    tables = [_follow_in_order(group, row) for group, row in zip(phrases, words, strict=True)]
    lengths = [sum(map(len, group)) for group in phrases]
    return InOrder(
        _stack(tables, device).long(), torch.tensor(lengths, dtype=torch.int64, device=device)
    )


def any_order(
    phrases: Sequence[Phrases], words: Sequence[Sequence[int]], device: torch.device
) -> AnyOrder:
    """Build the automata of phrases in any order, which may overlap; see `given_order`."""
    after, complete, begun, wanted, lengths = [], [], [], [], []
    for group, row in zip(phrases, words, strict=True):
        counts = Counter(tuple(phrase) for phrase in group)
        nodes = sorted({phrase[:end] for phrase in counts for end in range(len(phrase) + 1)} | {()})
        # the empty node, the root, comes first
        places: dict[tuple[int | None, ...], int] = {n: place for place, n in enumerate(nodes)}
        after.append([[places[_end_in(places, (*n, w))] for w in [*row, None]] for n in nodes])
        complete.append([[n[len(n) - len(p) :] == p for p in counts] for n in nodes])
        begun.append([[_overlap(n, p) for p in counts] for n in nodes])
        wanted.append([list(counts.values())])
        lengths.append([[len(phrase) for phrase in counts]])
    return AnyOrder(
        _stack(after, device),
        _stack(complete, device),
        _stack(begun, device),
        _stack(wanted, device).sum(1),  # removes the dimension of the only row, if there is one
        _stack(lengths, device).sum(1),
    )


def _follow_in_order(phrases: Phrases, words: Sequence[int]) -> list[list[int]]:
    """Return the transition table (T, U + 1) of the states of `InOrder`."""
    table: list[list[int]] = []
    for phrase in map(tuple, phrases):
        first = len(table)
        for length in range(len(phrase)):
            row = []
            for word in [*words, None]:
                text = (*phrase[:length], word)
                row.append(first + (len(phrase) if text == phrase else _overlap(text, phrase)))
            table.append(row)
    return [*table, [len(table)] * (len(words) + 1)]


def _end_in(
    nodes: Mapping[tuple[int | None, ...], int], text: tuple[int | None, ...]
) -> tuple[int | None, ...]:
    """Return the longest suffix of `text` that is one of the nodes."""
    return next(end for start in range(len(text) + 1) if (end := text[start:]) in nodes)


def _overlap(text: Sequence[int | None], phrase: Sequence[int]) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `phrase`."""
    most = min(len(text), len(phrase) - 1)
    return next(n for n in range(most, -1, -1) if tuple(text[len(text) - n :]) == phrase[:n])


def _stack(tables: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tensor:
    """Stack tables of different sizes into one three-dimensional tensor, padded with 0."""
    height = max(map(len, tables), default=0)
    width = max((len(row) for table in tables for row in table), default=0)
    stacked = torch.zeros(len(tables), height, width, dtype=torch.int64)
    for place, table in enumerate(tables):
        rows = torch.tensor(table, dtype=torch.int64)
        stacked[place, : rows.size(0), : rows.size(1)] = rows
    return stacked.to(device)


def _per_sentence(values: Tensor, like: Tensor) -> Tensor:
    """Insert dimensions after the first of values (A, ...), until they have as many as `like`."""
    return values.view(len(values), *[1] * (like.dim() - values.dim()), *values.shape[1:])


def _rows_of(table: Tensor, nodes: Tensor) -> Tensor:
    """Return the rows (A, ..., P) of table (A, T, P) at nodes (A, ...)."""
    sentences = torch.arange(len(table), device=table.device)
    return table[_per_sentence(sentences, nodes), nodes]


def _look_up(after: Tensor, states: Tensor, columns: Tensor) -> Tensor:
    """Return successors (A, K, M) of the first numbers of states (A, K, R) at columns (A, K, M)."""
    sentences = torch.arange(len(after), device=after.device)[:, None, None]
    return after[sentences, states[:, :, :1], columns]
