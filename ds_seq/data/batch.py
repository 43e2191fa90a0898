"""Batches: inputs of a model, its labels, and the mask of real labels.

The only module that pads rows, shifts targets and prepends the start symbol.
`ds_seq.data.text_batch` has the batches of models that read one text.

Shapes: B sentences, S source length, T target length, L either length, N real target tokens, K
tokens of a teacher; padding is always on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypeVar

from ds_seq.data.source import Source, TokenBlock
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols


class TopTokens(NamedTuple):
    """The most probable tokens of a teacher, one row per real target token, best first."""

    ids: Tensor
    """(N, K) int64."""
    log_probs: Tensor
    """(N, K) float32, natural logarithms of their probabilities among all tokens."""


class Candidates(NamedTuple):
    """The targets of a batch that has several for each source."""

    sentence: Tensor
    """(B,) int64, number of the source of each target, from 0."""
    column: Tensor
    """(B,) int64, number of each target among those of its source, from 0."""
    cost: Tensor
    """(B,) float32, error of each target, 0 for a perfect one."""
    is_compared: Tensor
    """(B,) bool, whether the target is one of those whose expected error counts."""
    is_reference: Tensor
    """(B,) bool, whether it is the reference."""
    share: Tensor
    """(sources,) float32, number of tokens of each reference."""
    num_tokens: int
    """Number of tokens of all references."""


class Mixture(NamedTuple):
    """What is known of a batch that has each sentence once for each expert of a mixture."""

    shares: Tensor
    """(K, B) float32, probability of each expert given the sentence and its target."""
    num_tokens: int
    """Number of target tokens of the sentences."""


class Seq2SeqInputs(NamedTuple):
    """The inputs of an encoder-decoder."""

    source: Tensor
    """(B, S) int64, each sentence with the end symbol."""
    source_mask: Tensor
    """(B, S) bool, True at real tokens."""
    target: Tensor
    """(B, T) int64, input of the decoder: the start symbol, then all labels but the last."""
    target_mask: Tensor
    """(B, T) bool, True at scored positions."""
    num_targets: int
    """Number of scored positions; known in advance to avoid a device synchronization."""
    num_sources: int | None = None
    """Number of real source tokens for the same reason, or None."""


_CHUNK = 1 << 20  # examples at a time
InputsT = TypeVar("InputsT", bound="tuple[Any, ...]", default=Any)


@dataclass(frozen=True)
class Batch(Generic[InputsT]):
    """A batch of examples.

    Attributes:
        indices: (B,) int64, number of each example in its dataset.
        inputs: named tuple of tensors and plain values, the first argument of the model.
        labels: (B, T) int64, tokens to predict.
        mask: (B, T) bool, True at real labels; this is the only definition of "real". Row n of the
            model's logits (N, V) belongs to the n-th real label in row-major order.
        num_tokens: N, number of real labels.
        num_sentences: number of examples; 0 in an empty batch, whose tensors nevertheless have one
            row of padding.
        teacher: top tokens of a cached teacher, one row per real label, or None.
        candidates: what is known of the targets if a criterion has generated them, or None.
        mixture: what is known of the experts if the batch has all sentences once for each, or None.
    """

    indices: Tensor
    inputs: InputsT
    labels: Tensor
    mask: Tensor
    num_tokens: int
    num_sentences: int
    teacher: TopTokens | None = None
    candidates: Candidates | None = None
    mixture: Mixture | None = None

    @property
    def counted_tokens(self) -> int:
        """Number of tokens by which the loss of the batch is divided: those of the data."""
        made = self.candidates or self.mixture
        return self.num_tokens if made is None else made.num_tokens

    @cached_property
    def real_labels(self) -> Tensor:
        """(N,) real labels in row-major order."""
        if not self.labels.is_cuda:
            return self.labels[self.mask]
        # indexing with a mask would synchronize with the device
        rows = torch.nonzero_static(self.mask.flatten(), size=self.num_tokens).squeeze(1)
        return self.labels.flatten().index_select(0, rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch[InputsT]:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> Batch[InputsT]:
        """Return the batch in page-locked memory, from which a GPU can copy asynchronously."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch[InputsT]:
        """Move every tensor; a shared one, such as the mask, is moved only once."""
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
            candidates=None if self.candidates is None else Candidates(*map(once, self.candidates)),
            mixture=None if self.mixture is None else Mixture(*map(once, self.mixture)),
        )


def seq2seq_batch(
    source: TokenBlock,
    target: TokenBlock,
    symbols: Symbols,
    indices: Tensor | None = None,
    teacher: TopTokens | None = None,
    pad_to_multiple: int = 1,
) -> Batch[Seq2SeqInputs]:
    """Return the batch of at least one sentence pair.

    Args:
        source: source sentences, each with the end symbol.
        target: target sentences, each with the end symbol.
        symbols: special symbols, for padding and the start of the decoder.
        indices: (B,) numbers of the pairs; default 0 to B - 1.
        teacher: top tokens of a teacher; see `Batch.teacher`.
        pad_to_multiple: number to a multiple of which S and T are rounded up.
    """
    source_ids, source_mask = pad_block(source, symbols.pad, pad_to_multiple)
    labels, mask = pad_block(target, symbols.pad, pad_to_multiple)
    shifted = shift(labels, mask, symbols)
    num_tokens, num_sentences = len(target.tokens), len(target.lengths)
    return Batch(
        torch.arange(num_sentences) if indices is None else indices,
        Seq2SeqInputs(source_ids, source_mask, shifted, mask, num_tokens, len(source.tokens)),
        labels,
        mask,
        num_tokens,
        num_sentences,
        teacher,
    )


def shift(labels: Tensor, mask: Tensor, symbols: Symbols) -> Tensor:
    """Return the input of the decoder (B, T) for labels (B, T): the start symbol comes first."""
    shifted = torch.full_like(labels, symbols.start)
    shifted[:, 1:] = labels[:, :-1].masked_fill(~mask[:, 1:], symbols.pad)
    return shifted


def empty_seq2seq_batch(symbols: Symbols, teacher: TopTokens | None = None) -> Batch[Seq2SeqInputs]:
    """Return the empty batch, with which a rank without work takes part in a collective forward.

    It has one source with only the end symbol, and one target with only padding.
    """
    mask = torch.tensor([[False]])
    source = torch.tensor([[symbols.eos]])
    start = torch.tensor([[symbols.start]])
    return Batch(
        indices=torch.zeros(0, dtype=torch.int64),
        inputs=Seq2SeqInputs(source, torch.ones_like(source, dtype=torch.bool), start, mask, 0, 1),
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
        """Return both tensors on a device."""
        return Padded(self.ids.to(device), self.mask.to(device))


def pad_block(block: TokenBlock, pad_id: int, multiple: int = 1) -> Padded:
    """Pad the rows of a block to the longest; the result is (0, 1) if there are no rows.

    Args:
        block: rows to pad.
        pad_id: id of the padding.
        multiple: number to a multiple of which L is rounded up.
    """
    width = -(-int(block.lengths.max(initial=1)) // multiple) * multiple
    real = np.arange(width) < block.lengths[:, None]
    ids = np.full(real.shape, pad_id, np.int64)
    ids[real] = block.tokens
    return Padded(torch.from_numpy(ids), torch.from_numpy(real))


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> Padded:
    """Pad a list of rows; see `pad_block`."""
    return pad_block(TokenBlock.of(rows), pad_id)


def rows_within(
    lengths: NDArray[np.integer], limits: Sequence[int | None]
) -> NDArray[np.unsignedinteger]:
    """Return the numbers (M,) of the examples within length limits, ascending.

    Args:
        lengths: (N, sides) lengths, perhaps in a file.
        limits: (sides) maximum length of each side; None: no limit.
    """
    most = np.asarray([np.iinfo(np.int64).max if limit is None else limit for limit in limits])
    kind = np.uint32 if len(lengths) <= 1 << 32 else np.uint64
    parts = [np.zeros(0, kind)]
    for start in range(0, len(lengths), _CHUNK):
        inside = (lengths[start : start + _CHUNK] <= most).all(axis=1)
        parts.append((start + np.flatnonzero(inside)).astype(kind))
    return np.concatenate(parts)


def lengths_of(lengths: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the lengths of some examples (M, sides), in 16 bits with a sign if they fit.

    Args:
        lengths: (N, sides) lengths of all examples, perhaps in a file.
        rows: (M,) numbers of the examples.
    """
    parts = range(0, len(rows), _CHUNK)
    longest = max((int(lengths[rows[p : p + _CHUNK]].max()) for p in parts), default=0)
    kind = np.int16 if longest < 1 << 15 else lengths.dtype
    result = np.empty((len(rows), lengths.shape[1]), kind)
    for start in parts:
        result[start : start + _CHUNK] = lengths[rows[start : start + _CHUNK]]
    return result


class ParallelDataset:
    """The pairs of a split that are within length limits.

    Pairs are numbered from 0 without gaps; pair n of the dataset is pair `rows[n]` of the source.

    Args:
        source: all pairs, with two sides.
        max_source_length: maximum source length in tokens, end symbol included; None: no limit.
        max_target_length: maximum target length in tokens, end symbol included; None: no limit.
        files: names of the files of text that `source` was made from, and their numbers of pairs,
            in the order of the pairs; empty if that is not known.

    Attributes:
        source: all pairs.
        files: see above.
        rows: (N,) numbers of the kept pairs in the source, ascending.
        lengths: (N, 2) lengths of the kept pairs, source and target.
        num_left_out: number of pairs beyond the limits.

    Raises:
        UserError: no pair is within the limits.
    """

    def __init__(
        self,
        source: Source,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        files: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.source, self.files = source, files
        self._teacher: TeacherCache | None = None
        self.rows: NDArray[np.integer] = rows_within(
            source.lengths, (max_source_length, max_target_length)
        )
        self.num_left_out = len(source) - len(self.rows)
        self.lengths: NDArray[np.integer] = source.lengths
        if self.num_left_out:  # a copy, otherwise shared with the source and perhaps other ranks
            self.lengths = lengths_of(source.lengths, self.rows)
        if len(self.rows) == 0:
            raise UserError(
                f"none of {len(source):,} sentence pairs is within "
                f"data.max_source_length={max_source_length} and "
                f"data.max_target_length={max_target_length}; raise them"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def by_file(self) -> list[NDArray[np.int64]]:
        """Return the numbers (in this dataset) of the pairs of each file; of all if not known."""
        ends = np.cumsum([*self.files.values()] or [len(self.source)])
        return np.split(np.arange(len(self)), np.searchsorted(self.rows, ends[:-1]))

    def attach(self, teacher: TeacherCache) -> None:
        """Add the cached outputs of a teacher to every batch, as `Batch.teacher`.

        Raises:
            UserError: the cache does not cover all pairs of this dataset.
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
            indices: (B,) numbers of pairs in this dataset. With B = 0 the result is
                `empty_seq2seq_batch`.
            symbols: special symbols of the vocabulary.
            pad_to_multiple: number to a multiple of which S and T are rounded up.
        """
        rows = self.rows[np.asarray(indices, np.int64)].astype(np.int64)
        top = None if self._teacher is None else _tensors(*self._teacher.gather(rows))
        if len(rows) == 0:
            return empty_seq2seq_batch(symbols, top)
        source, target = self.source.gather(rows)
        return seq2seq_batch(source, target, symbols, torch.from_numpy(rows), top, pad_to_multiple)


def _tensors(ids: NDArray[np.int64], log_probs: NDArray[np.float32]) -> TopTokens:
    return TopTokens(torch.from_numpy(ids), torch.from_numpy(log_probs))
