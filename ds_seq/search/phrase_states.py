"""What a token does for phrases that are to be in a translation: finite automata as tensors.

Shapes: B sentences, A sentences not finished yet, K beam width, U tokens of the phrases, M
continuations in question, T states of an automaton, P different phrases, R numbers in a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Phrases = Sequence[Sequence[int]]


class PhraseProgress(Protocol):
    """How far hypotheses are; a column below is the place of a token in the U, or U for others."""

    def start(self, width: int) -> Tensor:
        """States of empty hypotheses (A, K, R)."""

    def advance(self, states: Tensor, columns: Tensor) -> Tensor:
        """States (A, K, M, R) after `states` (A, K, R) and each of `columns` (A, K, M)."""

    def needed(self, states: Tensor) -> Tensor:
        """How many tokens are enough for what is missing, for states (A, ..., R): (A, ...).

        From every state where that is not 0 some token leads to one where it is less.
        """

    def keep(self, kept: Tensor) -> PhraseProgress:
        """The same for sentences `kept` (A',) of the A."""


class InOrder(NamedTuple):
    """A state is the number of tokens that fit: those of finished phrases, and of the next one.

    When a phrase breaks off, the longest end of what is there that begins the phrase still counts
    (Knuth, Morris and Pratt, 1977, "Fast pattern matching in strings").
    """

    after: Tensor
    """(A, T, U + 1) the next state."""
    lengths: Tensor
    """(A,) tokens of all phrases."""

    def start(self, width: int) -> Tensor:
        """Nothing fits yet."""
        return self.lengths.new_zeros(len(self.lengths), width, 1)

    def advance(self, states: Tensor, columns: Tensor) -> Tensor:
        """See `PhraseProgress`."""
        return _look_up(self.after, states, columns)[..., None]

    def needed(self, states: Tensor) -> Tensor:
        """What does not fit yet; fewer tokens are never enough."""
        return _per_sentence(self.lengths, states[..., 0]) - states[..., 0]

    def keep(self, kept: Tensor) -> InOrder:
        """See `PhraseProgress`."""
        return InOrder(*(tensor[kept] for tensor in self))


class AnyOrder(NamedTuple):
    """A state is a node of the phrases' automaton, and how often each phrase has been seen.

    The node is the longest end of the hypothesis that begins a phrase (Aho and Corasick, 1975,
    "Efficient string matching: an aid to bibliographic search").
    """

    after: Tensor
    """(A, T, U + 1) the next node."""
    complete: Tensor
    """(A, T, P) whether the phrase ends at the node."""
    begun: Tensor
    """(A, T, P) how many tokens at the end of the node's begin the phrase, short of all."""
    wanted: Tensor
    """(A, P) how often each phrase is to occur."""
    lengths: Tensor
    """(A, P) tokens of each."""

    def start(self, width: int) -> Tensor:
        """At the root, with nothing seen."""
        num_sentences, num_phrases = self.wanted.shape
        return self.wanted.new_zeros(num_sentences, width, 1 + num_phrases)

    def advance(self, states: Tensor, columns: Tensor) -> Tensor:
        """See `PhraseProgress`."""
        nodes = _look_up(self.after, states, columns)  # (A, K, M)
        seen = states[:, :, None, 1:] + _rows_of(self.complete, nodes)
        seen = seen.minimum(self.wanted[:, None, None])
        return torch.cat([nodes[..., None], seen], dim=3)

    def needed(self, states: Tensor) -> Tensor:
        """All that is missing, one after another, but for what the hypothesis ends with.

        Where phrases overlap fewer tokens may do.
        """
        missing = _per_sentence(self.wanted, states[..., 1:]) - states[..., 1:]
        begun = _rows_of(self.begun, states[..., 0]) * missing.gt(0)
        tokens = (missing * _per_sentence(self.lengths, missing)).sum(-1)
        return tokens - begun.amax(-1) if begun.size(-1) else tokens

    def keep(self, kept: Tensor) -> AnyOrder:
        """See `PhraseProgress`."""
        return AnyOrder(*(tensor[kept] for tensor in self))


def given_order(
    phrases: Sequence[Phrases], words: Sequence[Sequence[int]], device: torch.device
) -> InOrder:
    """The automata of phrases that occur one after another.

    Args:
        phrases: of each of the B sentences.
        words: (B, U) the tokens of each sentence's phrases, one column each.
        device: where the tables go.
    """
    tables = [_follow_in_order(own, row) for own, row in zip(phrases, words, strict=True)]
    lengths = [sum(map(len, own)) for own in phrases]
    return InOrder(
        _stack(tables, device).long(), torch.tensor(lengths, dtype=torch.int64, device=device)
    )


def any_order(
    phrases: Sequence[Phrases], words: Sequence[Sequence[int]], device: torch.device
) -> AnyOrder:
    """The automata of phrases in any order, which may overlap; see `given_order`."""
    after, complete, begun, wanted, lengths = [], [], [], [], []
    for own, row in zip(phrases, words, strict=True):
        counts = Counter(tuple(phrase) for phrase in own)
        nodes = sorted({phrase[:end] for phrase in counts for end in range(len(phrase) + 1)} | {()})
        # the empty one comes first
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
        _stack(wanted, device).sum(1),  # of the one row; with no sentence there is not even one
        _stack(lengths, device).sum(1),
    )


def _follow_in_order(phrases: Phrases, words: Sequence[int]) -> list[list[int]]:
    """The states (T, U + 1) after each state of `InOrder`."""
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
    """The longest end of `text` that is one of the nodes."""
    return next(end for start in range(len(text) + 1) if (end := text[start:]) in nodes)


def _overlap(text: Sequence[int | None], phrase: Sequence[int]) -> int:
    """How many tokens at the end of `text` begin `phrase`, short of all of it."""
    most = min(len(text), len(phrase) - 1)
    return next(n for n in range(most, -1, -1) if tuple(text[len(text) - n :]) == phrase[:n])


def _stack(tables: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tensor:
    """Tables of different sizes as one tensor of three dimensions, filled up with 0."""
    height = max(map(len, tables), default=0)
    width = max((len(row) for table in tables for row in table), default=0)
    stacked = torch.zeros(len(tables), height, width, dtype=torch.int64)
    for place, table in enumerate(tables):
        own = torch.tensor(table, dtype=torch.int64)
        stacked[place, : own.size(0), : own.size(1)] = own
    return stacked.to(device)


def _per_sentence(values: Tensor, like: Tensor) -> Tensor:
    """Values (A, ...) with as many dimensions as `like`, new ones after the first."""
    return values.view(len(values), *[1] * (like.dim() - values.dim()), *values.shape[1:])


def _rows_of(table: Tensor, nodes: Tensor) -> Tensor:
    """Rows of table (A, T, P) at nodes (A, ...): (A, ..., P)."""
    sentences = torch.arange(len(table), device=table.device)
    return table[_per_sentence(sentences, nodes), nodes]


def _look_up(after: Tensor, states: Tensor, columns: Tensor) -> Tensor:
    """What follows on the first numbers of states (A, K, R) at columns (A, K, M): (A, K, M)."""
    sentences = torch.arange(len(after), device=after.device)[:, None, None]
    return after[sentences, states[:, :, :1], columns]
