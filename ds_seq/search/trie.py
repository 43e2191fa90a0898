"""Trie-constrained decoding: translations from a list of allowed outputs.

Shapes: B sentences, A unfinished sentences, K width of the search, N = A K hypotheses, L decoded
length, V vocabulary, T nodes of the trie, E = T - 1 edges, U distinct nodes among those of the
hypotheses, D edges out of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_ROOT = 0


class AllowedOutputs:
    """Restricts the search to a list of outputs.

    De Cao et al., 2021, "Autoregressive Entity Retrieval", https://arxiv.org/abs/2010.00904. The
    list is stored as a trie of tokens. A hypothesis is a node of the trie and may continue with the
    tokens on the edges out of the node. A search is exact if its beam is as wide as the list is
    long.

    The longest output takes precedence over the length limit, but not over `min_len` and n-gram
    blocking. If these leave no output, the translation is empty and its score is -inf.

    Args:
        outputs: token ids of each allowed translation, without the end symbol; at least one.
        vocab_size: size of the vocabulary V.
        end: the end symbol.

    Raises:
        ValueError: no output is allowed.
    """

    def __init__(self, outputs: Iterable[Sequence[int]], vocab_size: int, end: int) -> None:
        lines = sorted({(*output, end) for output in outputs})
        if not lines:
            raise ValueError("no output is allowed")
        self._longest = max(map(len, lines)) - 1
        self._vocab_size = vocab_size
        parents: list[int] = []
        tokens: list[int] = []
        path = [_ROOT]  # the nodes of the previous line, which shares a prefix with this one
        before: tuple[int, ...] = ()
        for line in lines:
            shared = _shared(before, line)
            del path[shared + 1 :]
            for token in line[shared:]:
                parents.append(path[-1])
                tokens.append(token)
                path.append(len(parents))  # edge e leads to node e + 1
            before = line
        keys = torch.tensor(parents) * vocab_size + torch.tensor(tokens)  # (E,)
        self._keys, order = keys.sort()
        self._children = order + 1  # (E,)
        num_edges = torch.bincount(torch.tensor(parents), minlength=len(parents) + 1)  # (T,)
        self._first_edge = torch.cat([num_edges.new_zeros(1), num_edges.cumsum(0)])  # (T + 1,)

    def room(self, number: int) -> int:
        """Return the number of tokens of the longest allowed output."""
        return self._longest

    def start(self, numbers: Sequence[int], width: int, limits: Tensor) -> _TrieGuide:
        """Return a guide with all hypotheses at the root of the trie."""
        device = limits.device
        return _TrieGuide(
            self._keys.to(device),
            self._children.to(device),
            self._first_edge.to(device),
            self._vocab_size,
            limits.new_full((len(numbers) * width,), _ROOT),
        )


class _TrieGuide:
    """Guide that tracks the trie node of each hypothesis of a batch.

    Args:
        keys: key of each edge (E,), parent node times V plus token, ascending.
        children: node that each edge leads to, (E,).
        first_edge: index of the first edge out of each node, (T + 1,).
        vocab_size: size of the vocabulary V.
        nodes: node of each hypothesis, (N,).
    """

    def __init__(
        self, keys: Tensor, children: Tensor, first_edge: Tensor, vocab_size: int, nodes: Tensor
    ) -> None:
        self._keys = keys
        self._children = children
        self._first_edge = first_edge
        self._vocab_size = vocab_size
        self._nodes = nodes

    def restrict(self, log_probs: Tensor, tokens: Tensor) -> None:
        nodes, members = self._nodes.unique(return_inverse=True)  # (U,), (N,)
        first = self._first_edge[nodes]
        counts = self._first_edge[nodes + 1] - first  # (U,)
        rows = torch.repeat_interleave(counts)  # (D,)
        # the edges of a node are contiguous: index within the node, relative to its first edge
        within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        next_tokens = self._keys[first[rows] + within] % self._vocab_size
        forbidden = torch.ones(
            len(nodes), log_probs.size(1), dtype=torch.bool, device=log_probs.device
        )
        forbidden[rows, next_tokens] = False
        log_probs.masked_fill_(forbidden[members], -math.inf)

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        keys = self._nodes[rows] * self._vocab_size + tokens
        # An impossible hypothesis may hold a token without an edge. It stays impossible, so any
        # node will do.
        edges = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        self._nodes = self._children[edges]


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
