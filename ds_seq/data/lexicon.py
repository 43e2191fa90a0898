"""Likely translations of each source token, from the counts of IBM model 1.

Brown et al., 1993, "The Mathematics of Statistical Machine Translation: Parameter Estimation",
https://aclanthology.org/J93-2003. The end symbol of the source takes the place of the empty word.

Shapes: P pairs, C co-occurrences (a target token of a pair with a source token of it), Q different
co-occurrences, L targets of a source token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.progress import Progress
from ds_seq.data.source import SOURCE, TARGET, Source

_LONGEST = 100  # tokens of a side; co-occurrences grow with the product of both
_CHUNK = 10_000  # pairs at a time


class Lexicon(NamedTuple):
    """Translations of tokens."""

    targets: NDArray[np.int64]
    """(source vocabulary, L), the most probable targets of each source token, the best first; -1
    where there are fewer."""
    frequent: NDArray[np.int64]
    """The most frequent target tokens, the most frequent first."""


class _Chunk(NamedTuple):
    """The co-occurrences of some pairs, target token by target token."""

    keys: NDArray[np.integer]
    """(C,) which of the different co-occurrences it is."""
    lengths: NDArray[np.int64]
    """Number of source tokens of each target token."""


def learn_lexicon(
    source: Source,
    sizes: tuple[int, int],
    num_targets: int,
    num_frequent: int,
    num_pairs: int,
    num_iterations: int,
) -> Lexicon:
    """Estimate the translations of each token by expectation maximization.

    Args:
        source: pairs of the training. Those with a side of more than 100 tokens are left out.
        sizes: number of ids of source and target.
        num_targets: most targets of a source token, L.
        num_frequent: number of frequent target tokens.
        num_pairs: most pairs to use, spread evenly; 100,000 of 20 tokens take 0.5 GB of memory.
        num_iterations: iterations over the pairs.
    """
    rows = np.flatnonzero((np.asarray(source.lengths) <= _LONGEST).all(1))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), num_pairs)).astype(int))]
    counts = np.zeros(sizes[1], np.int64)
    chunks = []
    for start in range(0, len(rows), _CHUNK):
        chunk, tokens = _co_occurrences(source, rows[start : start + _CHUNK], sizes[1])
        counts += np.bincount(tokens, minlength=sizes[1])
        chunks.append(chunk)
    known = np.unique(np.concatenate([np.unique(chunk.keys) for chunk in chunks]))  # (Q,)
    chunks = [
        chunk._replace(keys=np.searchsorted(known, chunk.keys).astype(np.int32)) for chunk in chunks
    ]
    words = known // sizes[1]  # (Q,) source token of each
    probabilities = np.ones(len(known))
    with Progress("shortlist", num_iterations, "iterations") as progress:
        for _ in range(num_iterations):
            probabilities = _improved(probabilities, chunks, words)
            progress(1)
    targets = _best(words, known % sizes[1], probabilities, (sizes[0], num_targets))
    frequent = np.argsort(-counts, kind="stable")[:num_frequent]
    return Lexicon(targets, frequent[counts[frequent] > 0])


def _co_occurrences(
    source: Source, rows: NDArray[np.integer], vocab_size: int
) -> tuple[_Chunk, NDArray[np.int64]]:
    """Return the co-occurrences of some pairs, `source * vocab_size + target`, and the targets."""
    blocks = source.gather(rows)
    words, lengths = blocks[SOURCE].tokens.astype(np.int64), blocks[SOURCE].lengths.astype(np.int64)
    targets = blocks[TARGET].tokens.astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    pair = np.repeat(np.arange(len(rows)), blocks[TARGET].lengths)  # of each target token
    partners = lengths[pair]
    first = np.cumsum(partners) - partners
    # each target token meets the tokens of its source from first to last
    places = np.arange(partners.sum()) + np.repeat(starts[pair] - first, partners)
    keys = words[places] * vocab_size + np.repeat(targets, partners)
    return _Chunk(keys, partners), targets


def _improved(
    probabilities: NDArray[np.float64], chunks: list[_Chunk], words: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the probabilities (Q,) of targets given sources after one iteration."""
    counts = np.zeros(len(words))
    for chunk in chunks:
        shares = probabilities[chunk.keys]
        sums = np.add.reduceat(shares, np.cumsum(chunk.lengths) - chunk.lengths)
        shares /= np.repeat(sums, chunk.lengths)
        counts += np.bincount(chunk.keys, shares, len(words))
    return counts / np.bincount(words, counts)[words]


def _best(
    words: NDArray[np.int64],
    targets: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Return the most probable targets of each word, `Lexicon.targets`."""
    order = np.lexsort((-probabilities, words))
    words, targets = words[order], targets[order]
    ranks = np.arange(len(words)) - np.searchsorted(words, words)
    kept = ranks < shape[1]
    best = np.full(shape, -1, np.int64)
    best[words[kept], ranks[kept]] = targets[kept]
    return best
