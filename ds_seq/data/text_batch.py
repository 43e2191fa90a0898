"""Batches of models that read one text: decoder-only or encoder-only.

Shapes: B texts, T tokens; padding is always on the right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_seq.data.batch import Batch, pad_block, shift
from ds_seq.data.source import TokenBlock
from ds_seq.text.tokenizer import Symbols


class TextInputs(NamedTuple):
    """The inputs of a model that reads one text: decoder-only or encoder-only."""

    tokens: Tensor
    """(B, T) int64."""
    token_mask: Tensor
    """(B, T) bool, True at real tokens."""
    target_mask: Tensor
    """(B, T) bool, True at scored positions, which are among the real ones."""
    num_targets: int
    """Number of scored positions; known in advance to avoid a device synchronization."""
    num_tokens: int | None = None
    """Number of real tokens for the same reason, or None."""
    labels: Tensor | None = None
    """(N,) int64 correct tokens of the scored positions, for `ModelOutput.label_log_probs`."""


class MaskedInputs(TextInputs):
    """The inputs of an encoder-only model: some tokens are hidden, and these are scored."""


def masked_batch(
    read: TokenBlock,
    written: TokenBlock,
    is_scored: NDArray[np.bool_],
    symbols: Symbols,
    indices: Tensor,
) -> Batch[TextInputs]:
    """Return the batch of at least one text with hidden tokens.

    Args:
        read: the texts with what stands in place of hidden tokens.
        written: the texts as they are.
        is_scored: (all tokens,) which of them to predict.
        symbols: special symbols, for padding.
        indices: (B,) numbers of the texts.
    """
    tokens, real = pad_block(read, symbols.pad)
    labels, _ = pad_block(written, symbols.pad)
    mask = torch.zeros_like(real)
    mask[real] = torch.from_numpy(is_scored)
    num_targets, num_sentences = int(is_scored.sum()), len(read.lengths)
    inputs = MaskedInputs(tokens, real, mask, num_targets, len(read.tokens))
    return Batch(indices, inputs, labels, mask, num_targets, num_sentences)


def text_batch(
    block: TokenBlock,
    symbols: Symbols,
    indices: Tensor | None = None,
    first: Tensor | None = None,
    num_context: Tensor | None = None,
    pad_to_multiple: int = 1,
) -> Batch[TextInputs]:
    """Return the batch of at least one text, each token of which is predicted from those before.

    Args:
        block: the texts.
        symbols: special symbols, for padding and the first input.
        indices: (B,) numbers of the texts; default 0 to B - 1.
        first: (B,) first inputs, the tokens before the texts; None: the start symbol.
        num_context: (B,) number of tokens at the start of each text that are read, not scored; None
            scores all.
        pad_to_multiple: number to a multiple of which T is rounded up.
    """
    labels, real = pad_block(block, symbols.pad, pad_to_multiple)
    tokens = shift(labels, real, symbols)
    if first is not None:
        tokens[:, 0] = first
    mask = real
    if num_context is not None:
        mask = real & (torch.arange(real.size(1)) >= num_context[:, None])
    num_real, num_sentences = len(block.tokens), len(block.lengths)
    num_targets = num_real if num_context is None else int(mask.sum())
    return Batch(
        torch.arange(num_sentences) if indices is None else indices,
        TextInputs(tokens, real, mask, num_targets, num_real),
        labels,
        mask,
        num_targets,
        num_sentences,
    )


def empty_text_batch(symbols: Symbols, inputs: type[TextInputs] = TextInputs) -> Batch[TextInputs]:
    """Return the empty batch, as `empty_seq2seq_batch`: one text with only the start symbol."""
    mask = torch.tensor([[False]])
    return Batch(
        indices=torch.zeros(0, dtype=torch.int64),
        inputs=inputs(torch.tensor([[symbols.start]]), ~mask, mask, 0, 1),
        labels=torch.tensor([[symbols.pad]]),
        mask=mask,
        num_tokens=0,
        num_sentences=0,
    )
