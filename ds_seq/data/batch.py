"""Batches: what a model reads, what it shall say, and where that counts.

The only place that pads rows, shifts targets and puts the start symbol before them.

Shapes: B sentences, S source length, T target length, L either, N real target tokens, K tokens of a
teacher; padding is always on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypeVar

from ds_seq.data.source import SOURCE, TARGET, Source, TokenBlock
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols


class TopTokens(NamedTuple):
    """The most probable tokens of a teacher, one row per real target token, best first."""

    ids: Tensor
    """(N, K) int64."""
    log_probs: Tensor
    """(N, K) natural logarithms of their probabilities among all tokens; float32."""


class Seq2SeqInputs(NamedTuple):
    """What an encoder-decoder reads."""

    source: Tensor
    """(B, S) int64, each sentence with the end symbol."""
    source_mask: Tensor
    """(B, S) bool, True at real tokens."""
    target: Tensor
    """(B, T) int64, input of the decoder: the start symbol, then the labels but their last."""
    target_mask: Tensor
    """(B, T) bool, True at the rows that are scored."""
    num_targets: int
    """How many those are: a device that knows it need not be waited for."""


InputsT = TypeVar("InputsT", bound="tuple[Any, ...]", default=Any)


@dataclass(frozen=True)
class Batch(Generic[InputsT]):
    """A batch of examples.

    Attributes:
        indices: (B,) int64, number of each example in its data.
        inputs: what the model reads: a named tuple of tensors and plain values, the first argument
            of the model.
        labels: (B, T) int64, what the model shall say.
        mask: (B, T) bool, True at real labels: the one definition of "real". Row n of the model's
            logits (N, V) belongs to the n-th of them in row-major order.
        num_tokens: N, the real labels.
        num_sentences: examples; 0 in an empty batch, whose tensors have one row of padding all the
            same.
        teacher: the answer of a cached teacher, or None; a row per real label.
    """

    indices: Tensor
    inputs: InputsT
    labels: Tensor
    mask: Tensor
    num_tokens: int
    num_sentences: int
    teacher: TopTokens | None = None

    @cached_property
    def real_labels(self) -> Tensor:
        """(N,) the real labels in row-major order."""
        if not self.labels.is_cuda:
            return self.labels[self.mask]
        # indexing with a mask would wait for the device to count
        rows = torch.nonzero_static(self.mask.flatten(), size=self.num_tokens).squeeze(1)
        return self.labels.flatten().index_select(0, rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch[InputsT]:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> Batch[InputsT]:
        """Return the batch in page-locked memory, from which a GPU copies in the background."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch[InputsT]:
        """Move every tensor; one that stands in two places, such as the mask, is moved once."""
        moved: dict[int, Tensor] = {}

        def once(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) not in moved:
                moved[id(value)] = move(value)
            return moved[id(value)]

        return replace(
            self,
            indices=once(self.indices),
            inputs=type(self.inputs)(*map(once, self.inputs)),
            labels=once(self.labels),
            mask=once(self.mask),
            teacher=None if self.teacher is None else TopTokens(*map(once, self.teacher)),
        )


def seq2seq_batch(
    source: TokenBlock,
    target: TokenBlock,
    symbols: Symbols,
    indices: Tensor | None = None,
    teacher: TopTokens | None = None,
    pad_to_multiple: int = 1,
) -> Batch[Seq2SeqInputs]:
    """Return the batch of some sentence pairs, at least one.

    Args:
        source: sentences, each with the end symbol.
        target: their translations, likewise.
        symbols: with what to pad, and to start the decoder.
        indices: (B,) numbers of the pairs; default 0 to B - 1.
        teacher: see `Batch.teacher`.
        pad_to_multiple: S and T are rounded up to multiples of this.
    """
    source_ids, source_mask = pad_block(source, symbols.pad, pad_to_multiple)
    labels, mask = pad_block(target, symbols.pad, pad_to_multiple)
    shifted = torch.full_like(labels, symbols.start)
    shifted[:, 1:] = labels[:, :-1].masked_fill(~mask[:, 1:], symbols.pad)
    num_tokens, num_sentences = len(target.tokens), len(target.lengths)
    return Batch(
        torch.arange(num_sentences) if indices is None else indices,
        Seq2SeqInputs(source_ids, source_mask, shifted, mask, num_tokens),
        labels,
        mask,
        num_tokens,
        num_sentences,
        teacher,
    )


def empty_seq2seq_batch(symbols: Symbols, teacher: TopTokens | None = None) -> Batch[Seq2SeqInputs]:
    """Return the batch of no pair, with which a rank without work takes part in a collective forward.

    It has one source that is nothing but the end symbol, and one target that is nothing but
    padding.
    """
    mask = torch.tensor([[False]])
    source = torch.tensor([[symbols.eos]])
    start = torch.tensor([[symbols.start]])
    return Batch(
        indices=torch.zeros(0, dtype=torch.int64),
        inputs=Seq2SeqInputs(source, torch.ones_like(source, dtype=torch.bool), start, mask, 0),
        labels=torch.tensor([[symbols.pad]]),
        mask=mask,
        num_tokens=0,
        num_sentences=0,
        teacher=teacher,
    )


class Padded(NamedTuple):
    """Rows of ids, padded on the right."""

    ids: Tensor
    """(B, L) int64."""
    mask: Tensor
    """(B, L) bool, True at real tokens."""

    def to(self, device: torch.device) -> Padded:
        """Return both on a device."""
        return Padded(self.ids.to(device), self.mask.to(device))


def pad_block(block: TokenBlock, pad_id: int, multiple: int = 1) -> Padded:
    """Pad the rows of a block to the longest; (0, 1) for no rows.

    Args:
        block: the rows.
        pad_id: fills them up.
        multiple: L is rounded up to a multiple of this.
    """
    width = -(-int(block.lengths.max(initial=1)) // multiple) * multiple
    real = np.arange(width) < block.lengths[:, None]
    ids = np.full(real.shape, pad_id, np.int64)
    ids[real] = block.tokens
    return Padded(torch.from_numpy(ids), torch.from_numpy(real))


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> Padded:
    """`pad_block` of a list of rows."""
    return pad_block(TokenBlock.of(rows), pad_id)


class ParallelDataset:
    """The pairs of a split whose sides are short enough.

    Pairs are numbered from 0 without gaps; pair n of the dataset is pair `rows[n]` of the source.

    Args:
        source: all pairs; of two sides.
        max_source_length: longest source in tokens, end symbol included; None = no limit.
        max_target_length: the same for the target.

    Attributes:
        source: as given.
        rows: (N,) numbers of the kept pairs in the source, rising.
        lengths: (N, 2) lengths of the kept pairs, source and target.
        num_left_out: pairs beyond the limits.

    Raises:
        UserError: no pair is within the limits.
    """

    def __init__(
        self,
        source: Source,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
    ) -> None:
        self.source = source
        self._teacher: TeacherCache | None = None
        keep = np.ones(len(source), bool)
        for side, limit in ((SOURCE, max_source_length), (TARGET, max_target_length)):
            if limit is not None:
                keep &= source.lengths[:, side] <= limit
        self.rows: NDArray[np.int64] = np.flatnonzero(keep)
        self.lengths: NDArray[np.integer] = source.lengths[self.rows]
        self.num_left_out = len(source) - len(self.rows)
        if len(self.rows) == 0:
            raise UserError(
                f"none of {len(source):,} sentence pairs is within "
                f"data.max_source_length={max_source_length} and "
                f"data.max_target_length={max_target_length}; raise them"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def attach(self, teacher: TeacherCache) -> None:
        """Let every batch bring what a teacher once said about it, as `Batch.teacher`.

        Raises:
            UserError: it has not read all pairs of this dataset.
        """
        teacher.check_covers(self.lengths)
        self._teacher = teacher

    def collate(
        self,
        indices: NDArray[np.integer] | Sequence[int],
        symbols: Symbols,
        pad_to_multiple: int = 1,
    ) -> Batch[Seq2SeqInputs]:
        """Build the batch of some pairs.

        Args:
            indices: (B,) pair numbers of this dataset. None at all give the empty batch, see
                `empty_seq2seq_batch`.
            symbols: of the vocabulary.
            pad_to_multiple: S and T are rounded up to multiples of this.
        """
        rows = self.rows[np.asarray(indices, np.int64)]
        top = None if self._teacher is None else _tensors(*self._teacher.gather(rows))
        if len(rows) == 0:
            return empty_seq2seq_batch(symbols, top)
        source, target = self.source.gather(rows)
        return seq2seq_batch(source, target, symbols, torch.from_numpy(rows), top, pad_to_multiple)


def _tensors(ids: NDArray[np.int64], log_probs: NDArray[np.float32]) -> TopTokens:
    return TopTokens(torch.from_numpy(ids), torch.from_numpy(log_probs))
