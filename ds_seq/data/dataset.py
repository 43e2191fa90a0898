"""Sentence pairs as padded tensors.

Shapes: B sentences, S source length, T target length; padding is always on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_seq.data.source import SOURCE, TARGET, Source, TokenBlock
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError


class TopTokens(NamedTuple):
    """The most probable tokens of a teacher, one row per real target token, best first."""

    ids: Tensor
    """(N, K) int64."""
    log_probs: Tensor
    """(N, K) natural logarithms of their probabilities among all tokens; float32."""


@dataclass(frozen=True)
class Batch:
    """A batch of sentence pairs.

    Attributes:
        indices: (B,) int64, number of each pair in its shards, which is its line in the text.
        src: (B, S) int64, source ids, each sentence with the end symbol.
        tgt_in: (B, T) int64, input of the decoder: the end symbol, then the target without its
            last token.
        tgt_out: (B, T) int64, what the decoder is to say: the target with the end symbol.
        num_tokens: tokens of ``tgt_out`` that are not padding.
        num_sentences: sentence pairs; 0 in an empty batch, whose tensors have one row of padding
            all the same.
        teacher: what a cached teacher says, or None; its rows are the tokens of ``tgt_out`` that
            are not padding, in row-major order.
    """

    indices: Tensor
    src: Tensor
    tgt_in: Tensor
    tgt_out: Tensor
    num_tokens: int
    num_sentences: int
    teacher: TopTokens | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Returns the batch on a device."""
        return Batch(
            self.indices.to(device, non_blocking=non_blocking),
            self.src.to(device, non_blocking=non_blocking),
            self.tgt_in.to(device, non_blocking=non_blocking),
            self.tgt_out.to(device, non_blocking=non_blocking),
            self.num_tokens,
            self.num_sentences,
            None
            if self.teacher is None
            else TopTokens(*(x.to(device, non_blocking=non_blocking) for x in self.teacher)),
        )

    def pin(self) -> Batch:
        """Returns the batch in page-locked memory, from which a GPU copies in the background."""
        return Batch(
            self.indices.pin_memory(),
            self.src.pin_memory(),
            self.tgt_in.pin_memory(),
            self.tgt_out.pin_memory(),
            self.num_tokens,
            self.num_sentences,
            None if self.teacher is None else TopTokens(*(x.pin_memory() for x in self.teacher)),
        )


class ParallelDataset:
    """The pairs of a split whose sides are short enough.

    Pairs are numbered from 0 without gaps; pair n of the dataset is pair ``rows[n]`` of the source.

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
        pad_id: int,
        eos_id: int,
        pad_to_multiple: int = 1,
    ) -> Batch:
        """Builds the batch of some pairs.

        Args:
            indices: (B,) pair numbers of this dataset. None at all give the empty batch: one
                source that is nothing but the end symbol and one target that is nothing but
                padding, with which a rank without work takes part in a collective forward.
            pad_id: id of the padding symbol.
            eos_id: id of the end symbol.
            pad_to_multiple: S and T are rounded up to multiples of this.
        """
        rows = self.rows[np.asarray(indices, np.int64)]
        top = None if self._teacher is None else _tensors(*self._teacher.gather(rows))
        if len(rows) == 0:
            return _empty_batch(pad_id, eos_id, top)
        source, target = self.source.gather(rows)
        src, _ = _pad(source, pad_id, pad_to_multiple)
        tgt_out, real = _pad(target, pad_id, pad_to_multiple)
        tgt_in = np.empty_like(tgt_out)
        tgt_in[:, 0] = eos_id
        tgt_in[:, 1:] = np.where(real[:, 1:], tgt_out[:, :-1], pad_id)
        return Batch(
            torch.from_numpy(rows),
            torch.from_numpy(src),
            torch.from_numpy(tgt_in),
            torch.from_numpy(tgt_out),
            len(target.tokens),
            len(rows),
            top,
        )


def _tensors(ids: NDArray[np.int64], log_probs: NDArray[np.float32]) -> TopTokens:
    return TopTokens(torch.from_numpy(ids), torch.from_numpy(log_probs))


def _pad(
    block: TokenBlock, pad_id: int, multiple: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the sentences as a matrix (B, L) and where it holds tokens (B, L)."""
    width = -(-int(block.lengths.max()) // multiple) * multiple
    real = np.arange(width) < block.lengths[:, None]
    matrix = np.full(real.shape, pad_id, np.int64)
    matrix[real] = block.tokens
    return matrix, real


def _empty_batch(pad_id: int, eos_id: int, teacher: TopTokens | None) -> Batch:
    return Batch(
        indices=torch.zeros(0, dtype=torch.int64),
        src=torch.tensor([[eos_id]]),
        tgt_in=torch.tensor([[eos_id]]),
        tgt_out=torch.tensor([[pad_id]]),
        num_tokens=0,
        num_sentences=0,
        teacher=teacher,
    )
