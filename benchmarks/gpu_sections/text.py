"""gpu.py: synthetic text with lengths like WMT's, and the work per batch.

Shapes: B sentences, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq.data.batch import Batch, Seq2SeqInputs, seq2seq_batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.source import TokenBlock
from ds_seq.text.tokenizer import Symbols

from .bench import Sizes

SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2, bos=0)
_FIRST_WORD = 4  # lower ids are special symbols
_PAIRS = 60_000
_LONGEST = 120


class TextBatch(NamedTuple):
    """A batch and the lengths of its sentences."""

    batch: Batch[Seq2SeqInputs]
    source: NDArray[np.int64]
    """(B,) lengths of the sources."""
    target: NDArray[np.int64]
    """(B,) lengths of the targets."""


def make_batches(
    sizes: Sizes, max_tokens: int, count: int, device: torch.device
) -> list[TextBatch]:
    """Return batches of random words, formed as in training.

    Args:
        sizes: sizes, of which the vocabulary is used.
        max_tokens: tokens per batch, including padding.
        count: number of batches.
        device: device of the batches.
    """
    random = np.random.default_rng(7)
    drawn = np.exp(random.normal(3.15, 0.6, _PAIRS)).astype(np.int64) + 2
    source = np.clip(drawn, 3, min(_LONGEST, max_tokens))
    stretched = (source * np.exp(random.normal(0.03, 0.18, _PAIRS))).astype(np.int64)
    target = np.clip(stretched, 2, min(_LONGEST + 7, max_tokens))
    sampler = TokenBatchSampler(
        np.stack([source, target], axis=1), max_tokens, seed=3, accumulate=1
    )
    made = []
    for rows in _first(sampler.epoch(1), count):
        sides = [_sentences(sizes.vocab, lengths[rows], random) for lengths in (source, target)]
        batch = seq2seq_batch(sides[0], sides[1], SYMBOLS).to(device)
        made.append(TextBatch(batch, source[rows], target[rows]))
    return made


def _first(batches: Iterator[NDArray[np.int64]], count: int) -> Iterator[NDArray[np.int64]]:
    return (rows for _, rows in zip(range(count), batches, strict=False))


def _sentences(vocab: int, lengths: NDArray[np.int64], random: np.random.Generator) -> TokenBlock:
    tokens = random.integers(_FIRST_WORD, vocab, int(lengths.sum()))
    tokens[lengths.cumsum() - 1] = SYMBOLS.eos
    return TokenBlock(tokens, lengths)


def step_flops(sizes: Sizes, text: TextBatch, padded: bool = False) -> float:
    """Return FLOPs of forward and backward: 6 per weight and token, 12 per attended pair.

    A top-1 expert costs the same as the dense feed-forward.

    Args:
        sizes: sizes of the model.
        text: the batch.
        padded: whether to count the work for padding too.
    """
    batch = text.batch
    if padded:
        rows, s = batch.inputs.source.shape
        t = batch.inputs.target.shape[1]
        sources, targets = float(rows * s), float(rows * t)
        pairs, causal_pairs, cross_pairs = sources * s, targets * t, sources * t
    else:
        s, t = text.source.astype(float), text.target.astype(float)
        sources, targets = s.sum(), t.sum()
        pairs, causal_pairs, cross_pairs = (s * s).sum(), (t * t).sum() / 2, (s * t).sum()
    d, f = sizes.model["d_model"], sizes.model["ffn_dim"]
    encoder_layer = 6 * sources * (4 * d * d + 2 * d * f) + 12 * d * pairs
    decoder_layer = (
        6 * targets * (6 * d * d + 2 * d * f)
        + 6 * sources * 2 * d * d
        + 12 * d * (causal_pairs + cross_pairs)
    )
    return float(
        sizes.model["encoder_layers"] * encoder_layer
        + sizes.model["decoder_layers"] * decoder_layer
        + 6 * batch.num_tokens * d * sizes.vocab
    )
