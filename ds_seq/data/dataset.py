"""The sentence pairs of a split, and batches of them.

Shapes: B sentences, S source length, T target length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq.data.batch import (
    Batch,
    Seq2SeqInputs,
    TopTokens,
    empty_seq2seq_batch,
    seq2seq_batch,
)
from ds_seq.data.source import SOURCE, TARGET, Source
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols


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
        symbols: Symbols,
        pad_to_multiple: int = 1,
    ) -> Batch[Seq2SeqInputs]:
        """Builds the batch of some pairs.

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
