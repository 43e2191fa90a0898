"""What is made of a finished batch: its halves, copies of it, the empty batch of its kind.

Shapes: see `ds_seq.data.batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ds_seq.data.batch import Batch, Seq2SeqInputs, TopTokens, pad_rows, shift
from ds_seq.data.text_batch import TextInputs
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

Inputs = Seq2SeqInputs | TextInputs


def can_split(batch: Batch) -> bool:
    """Return whether the batch is of a kind that can be divided here."""
    return isinstance(batch.inputs, Seq2SeqInputs | TextInputs)


def padded_tokens(batch: Batch) -> int:
    """Return sentences x longest side, which `train.max_tokens` limits."""
    rows, length = batch.labels.shape
    if isinstance(batch.inputs, Seq2SeqInputs):
        length = max(length, batch.inputs.source.shape[1])
    return int(rows * length)


def repeated(batch: Batch, times: int) -> Batch:
    """Return the batch with all its sentences, then all of them again, `times` times in all.

    Raises:
        UserError: the batch is of a task with inputs of its own.
    """
    if not can_split(batch):
        raise UserError(
            f"this criterion lets the model read each batch {times} times, which only batches with "
            "the inputs of our models support; use another criterion"
        )
    teacher = batch.teacher
    mask = batch.mask.repeat(times, 1)
    return Batch(
        indices=batch.indices.repeat(times),
        inputs=_repeated_inputs(batch.inputs, times, mask),
        labels=batch.labels.repeat(times, 1),
        mask=mask,
        num_tokens=batch.num_tokens * times,
        num_sentences=batch.num_sentences * times,
        teacher=None if teacher is None else TopTokens(*(t.repeat(times, 1) for t in teacher)),
    )


def _repeated_inputs(inputs: Inputs, times: int, mask: Tensor) -> Inputs:
    if isinstance(inputs, TextInputs):
        num_tokens = None if inputs.num_tokens is None else inputs.num_tokens * times
        texts = inputs.tokens.repeat(times, 1), inputs.token_mask.repeat(times, 1)
        return TextInputs(*texts, mask, inputs.num_targets * times, num_tokens)
    num_sources = inputs.num_sources
    return Seq2SeqInputs(
        inputs.source.repeat(times, 1),
        inputs.source_mask.repeat(times, 1),
        inputs.target.repeat(times, 1),
        mask,
        inputs.num_targets * times,
        None if num_sources is None else num_sources * times,
    )


def real_rows(ids: Tensor, mask: Tensor, count: int) -> list[list[int]]:
    """Return the real ids of the first `count` rows of a padded tensor (B, L)."""
    lengths = mask[:count].sum(1).tolist()
    return [row[:length] for row, length in zip(ids[:count].tolist(), lengths, strict=True)]


def with_targets(
    batch: Batch[Seq2SeqInputs],
    sentences: Sequence[int],
    targets: Sequence[Sequence[int]],
    symbols: Symbols,
) -> Batch[Seq2SeqInputs]:
    """Return a batch of the sources of another one and new targets, on the same device.

    Args:
        batch: batch with the sources; its labels are not used.
        sentences: number of the source of each target in the batch.
        targets: ids of at least one target, each with the end symbol.
        symbols: special symbols of the target.
    """
    source, device = batch.inputs.source, batch.labels.device
    rows = torch.tensor(sentences, device=device)
    source_mask = batch.inputs.source_mask.index_select(0, rows)
    labels, mask = pad_rows(targets, symbols.pad)
    shifted = shift(labels, mask, symbols).to(device)
    mask = mask.to(device)
    num_tokens = sum(map(len, targets))
    return Batch(
        indices=batch.indices.index_select(0, rows),
        inputs=Seq2SeqInputs(
            source.index_select(0, rows),
            source_mask,
            shifted,
            mask,
            num_tokens,
            int(source_mask.sum()),
        ),
        labels=labels.to(device),
        mask=mask,
        num_tokens=num_tokens,
        num_sentences=len(targets),
    )


def halves(batch: Batch) -> list[Batch]:
    """Return the two halves of a batch of at least two sentences, padded as the whole is."""
    middle = batch.num_sentences // 2
    return [_rows(batch, 0, middle), _rows(batch, middle, batch.num_sentences)]


def emptied(batch: Batch) -> Batch:
    """Return a batch without examples, as `empty_seq2seq_batch` makes it."""
    first = _rows(batch, 0, 1)
    none = first.mask[:, :1] & False
    if isinstance(first.inputs, TextInputs):
        inputs: Inputs = TextInputs(first.inputs.tokens[:, :1], ~none, none, 0, 1)
    else:
        source, mask, target = (tensor[:, :1] for tensor in first.inputs[:3])
        inputs = Seq2SeqInputs(source, mask, target, none, 0, 1)
    return Batch(
        indices=batch.indices[:0],
        inputs=inputs,
        labels=first.labels[:, :1],
        mask=none,
        num_tokens=0,
        num_sentences=0,
        teacher=None if batch.teacher is None else TopTokens(*(t[:0] for t in batch.teacher)),
    )


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    """Return the batch of some of the sentences."""
    mask = batch.mask[start:stop]
    before, inside = int(batch.mask[:start].sum()), int(mask.sum())

    def of_labels(value: Tensor) -> Tensor:
        return value[before : before + inside]

    return replace(
        batch,
        indices=batch.indices[start:stop],
        inputs=_some_inputs(batch.inputs, slice(start, stop), mask, inside),
        labels=batch.labels[start:stop],
        mask=mask,
        num_tokens=inside,
        num_sentences=stop - start,
        teacher=None if batch.teacher is None else TopTokens(*map(of_labels, batch.teacher)),
    )


def _some_inputs(inputs: Inputs, rows: slice, mask: Tensor, num_targets: int) -> Inputs:
    """Return the inputs of some sentences, whose scored positions are `mask`."""
    if isinstance(inputs, TextInputs):
        real = inputs.token_mask[rows]
        num_tokens = None if inputs.num_tokens is None else int(real.sum())
        return TextInputs(inputs.tokens[rows], real, mask, num_targets, num_tokens)
    source_mask = inputs.source_mask[rows]
    num_sources = None if inputs.num_sources is None else int(source_mask.sum())
    source, target = inputs.source[rows], inputs.target[rows]
    return Seq2SeqInputs(source, source_mask, target, mask, num_targets, num_sources)
