"""Training pairs of several corpora: tags, documents, cuts and changes on the fly.

Shapes: N examples, B examples of a batch; an example is one pair or several consecutive ones.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq.data.batch import (
    Batch,
    ParallelDataset,
    Seq2SeqInputs,
    lengths_of,
    rows_within,
    seq2seq_batch,
)
from ds_seq.data.blocks import cut_sentences, join_lengths, join_sentences, prepend
from ds_seq.data.modify import Modifier, copy_numbers
from ds_seq.data.source import Key, Source, TokenBlock
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

_NO_LIMIT = 1 << 31
_NUM_DRAWN = 256  # pairs by which the growth of drawn subwords is measured
_NUM_SAMPLED = 4096  # pairs whose ids are part of a fingerprint


@dataclass(frozen=True)
class Part:
    """A corpus, or a file of a held-out split: consecutive pairs of a source.

    Attributes:
        name: its name.
        rows: numbers of its pairs.
        languages: language codes of source and target.
        tags: ids at the start of each source, and of each target.
        join: most tokens of a document that consecutive pairs are joined to; None: no documents.
        modifier: changes its pairs.
        in_stages: other modifiers by stage of the training; None changes nothing in that stage.
        fingerprint: fingerprint of its content; empty if it is not known.
    """

    name: str
    rows: range
    languages: tuple[str, str]
    tags: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    join: int | None = None
    modifier: Modifier | None = None
    in_stages: Mapping[int, Modifier | None] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def truncate(self) -> int | None:
        """Length to which sides are cut, end symbol included; None: they are not cut."""
        return None if self.modifier is None else self.modifier.changes.truncate

    @property
    def modifiers(self) -> list[Modifier]:
        """All that change pairs in some stage, by more than cuts."""
        both = [self.modifier, *self.in_stages.values()]
        return [each for each in both if each is not None and each.changes.any]

    def modifier_in(self, stage: int) -> Modifier | None:
        """Return what changes pairs in a stage, by more than cuts; None: nothing."""
        modifier = self.in_stages.get(stage, self.modifier)
        return modifier if modifier is not None and modifier.changes.any else None

    @property
    def is_changed(self) -> bool:
        """Whether examples differ from the pairs of the source."""
        return bool(self.modifiers or self.truncate or any(self.tags) or self.join)


class _Examples(NamedTuple):
    """The examples of a corpus: first pairs (N,), numbers of pairs (N,), lengths (N, 2)."""

    rows: NDArray[np.integer]
    counts: NDArray[np.int64] | None  # None: one pair each
    lengths: NDArray[np.integer]


class CorporaDataset(ParallelDataset):
    """The examples of several corpora that are within length limits; see `ParallelDataset`.

    Args:
        source: all pairs, with two sides.
        parts: the corpora, in the order of their rows; other rows are left out.
        max_source_length: maximum source length in tokens, tags and end symbol included.
        max_target_length: the same for the target.
        files: see `ParallelDataset`.

    Where a mix has several copies of an example in an epoch, copy n of example i has the number
    `n * N + i`, so that each is changed in its own way.

    Attributes:
        parts: the corpora.
        first: (len(parts) + 1,) number of the first example of each corpus, and N.

    Raises:
        UserError: no pair of a corpus is within the limits.
    """

    def __init__(
        self,
        source: Source,
        parts: Sequence[Part],
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        files: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.source, self.parts, self.files = source, tuple(parts), files
        self._teacher = None
        self._fingerprints: dict[int, str] = {}
        self._key: Key | None = None
        self._stage = 0
        self._limits = np.asarray(
            [_NO_LIMIT if most is None else most for most in (max_source_length, max_target_length)]
        )
        found = [self._examples(part) for part in parts]
        self.rows, self.lengths = (
            np.concatenate(column)
            for column in zip(*((e.rows, e.lengths) for e in found), strict=True)
        )
        if len(self.rows) == len(source) and not any(part.is_changed for part in parts):
            self.lengths = source.lengths  # no copy: they may be mapped, and shared by ranks
        sizes = [len(examples.rows) for examples in found]
        self._counts: NDArray[np.int64] | None = None
        if any(examples.counts is not None for examples in found):
            self._counts = np.concatenate(
                [
                    np.ones(size, np.int64) if examples.counts is None else examples.counts
                    for size, examples in zip(sizes, found, strict=True)
                ]
            )
        self.first = np.cumsum([0, *sizes])
        for part, start, stop in zip(self.parts, self.first[:-1], self.first[1:], strict=True):
            drawing = [each for each in part.modifiers if each.changes.subword_alpha]
            if drawing:
                sample = np.unique(np.linspace(start, stop - 1, _NUM_DRAWN).astype(np.int64))
                blocks = source.gather(self.rows[sample].astype(np.int64))
                sentences = [_sentences(block) for block in blocks]
                for modifier in drawing:
                    modifier.measure_growth(sentences)
        num_pairs = len(self.rows) if self._counts is None else int(self._counts.sum())
        self.num_left_out = sum(len(part.rows) for part in parts) - num_pairs

    def _examples(self, part: Part) -> _Examples:
        """Return the examples of a corpus."""
        lengths = self.source.lengths[part.rows.start : part.rows.stop]
        if part.truncate is not None:
            lengths = np.minimum(lengths, part.truncate)
        tags = np.asarray([len(side) for side in part.tags])
        limits = self._limits - tags
        keep = rows_within(lengths, limits.tolist())
        if len(keep) == 0:
            raise UserError(
                f"none of {len(part.rows):,} sentence pairs of {part.name} is within "
                f"data.max_source_length={self._limits[0]} and "
                f"data.max_target_length={self._limits[1]}, tags included; raise them"
            )
        counts, lengths = None, lengths_of(lengths, keep)
        if part.join is not None:
            most = np.minimum(limits, part.join)
            first, counts, lengths = join_lengths(keep.astype(np.int64), lengths, most)
            keep = keep[first]
        if any(part.tags):
            lengths = lengths + tags.astype(lengths.dtype)
        rows = keep + keep.dtype.type(part.rows.start)
        return _Examples(rows, counts, lengths)

    def in_epoch(self, key: Key, stage: int = 0) -> CorporaDataset:
        """Return the examples as they are in an epoch of a stage; before, nothing changes.

        Args:
            key: seed and epoch.
            stage: number of the stage, from 0.
        """
        other = copy.copy(self)
        other._key, other._stage = key, stage
        return other

    def bounds(self, key: Key, indices: NDArray[np.integer], stage: int = 0) -> NDArray[np.integer]:
        """Return upper bounds of the lengths (B, 2) of some examples; see `in_epoch`."""
        copies, places = np.divmod(indices, len(self.rows))
        bounds = self.lengths[places].astype(np.int64)
        for part, chosen in self._by_part(indices):
            modifier = part.modifier_in(stage)
            if modifier is None:
                continue
            most = self._limits if part.truncate is None else part.truncate
            numbers = copy_numbers(self.rows[places[chosen]], copies[chosen])
            grown = modifier.bounds(bounds[chosen], numbers, key)
            bounds[chosen] = np.minimum(grown, np.maximum(most, bounds[chosen]))
        return bounds

    @property
    def has_changing_lengths(self) -> bool:
        """Whether lengths differ from epoch to epoch."""
        return any(part.modifiers for part in self.parts)

    def part_of(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number (B,) of the corpus of each example."""
        return np.searchsorted(self.first, indices % len(self.rows), side="right") - 1

    def _by_part(self, indices: NDArray[np.integer]) -> list[tuple[Part, NDArray[np.int64]]]:
        """Return the corpora of some examples with the places of their examples among these."""
        numbers = self.part_of(indices)
        return [(self.parts[n], np.flatnonzero(numbers == n)) for n in np.unique(numbers)]

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of the content of a corpus, as it is used here.

        It covers what the corpus was made from, if that is known, the lengths of all examples, and
        the ids of some.
        """
        if number in self._fingerprints:
            return self._fingerprints[number]
        part = self.parts[number]
        examples = slice(int(self.first[number]), int(self.first[number + 1]))
        digest = hashlib.sha256(part.fingerprint.encode())
        digest.update(np.ascontiguousarray(self.lengths[examples], np.int32).tobytes())
        rows = self.rows[examples]
        some = rows[np.unique(np.linspace(0, len(rows) - 1, _NUM_SAMPLED).astype(np.int64))]
        for block in self.source.gather(some):
            digest.update(np.ascontiguousarray(block.tokens, np.int64).tobytes())
        self._fingerprints[number] = digest.hexdigest()
        return self._fingerprints[number]

    def attach(self, teacher: TeacherCache) -> None:
        """See `ParallelDataset.attach`; refuses examples that are not the pairs of the source."""
        for part in self.parts:
            if part.is_changed:
                raise UserError(
                    f"criterion.cache: holds outputs for the pairs as they are, but {part.name} "
                    "has tags, documents or changes (data.corpora, data.modify); remove them, or "
                    "use a live teacher"
                )
        super().attach(teacher)

    def collate(
        self,
        indices: NDArray[np.integer] | Sequence[int],
        symbols: Symbols,
        pad_to_multiple: int = 1,
    ) -> Batch[Seq2SeqInputs]:
        """Build the batch of some examples; see `ParallelDataset.collate`."""
        numbers = np.asarray(indices, np.int64)
        if len(numbers) == 0 or not any(part.is_changed for part in self.parts):
            return super().collate(numbers, symbols, pad_to_multiple)
        rows = self.rows[numbers % len(self.rows)].astype(np.int64)
        source, target = self._changed(numbers, symbols)
        return seq2seq_batch(source, target, symbols, torch.from_numpy(rows), None, pad_to_multiple)

    def _changed(self, indices: NDArray[np.int64], symbols: Symbols) -> list[TokenBlock]:
        """Return the blocks of both sides of some examples, with all that changes them."""
        places = indices % len(self.rows)
        rows = self.rows[places].astype(np.int64)
        counts = np.ones(len(rows), np.int64) if self._counts is None else self._counts[places]
        by_part = self._by_part(indices)
        most = np.full(len(indices), _NO_LIMIT)
        tags: list[list[tuple[int, ...]]] = [[()] * len(indices), [()] * len(indices)]
        for part, chosen in by_part:
            most[chosen] = _NO_LIMIT if part.truncate is None else part.truncate
            for place in chosen:
                for side in (0, 1):
                    tags[side][place] = part.tags[side]
        ends = np.cumsum(counts)
        every = np.repeat(rows - ends + counts, counts) + np.arange(ends[-1])
        cuts = np.repeat(most, counts)
        sides = [
            join_sentences(cut_sentences(block, cuts), counts)
            for block in self.source.gather(every)
        ]
        if self._key is not None and any(part.modifier_in(self._stage) for part, _ in by_part):
            sides = self._modified(sides, indices, by_part)
        return [prepend(block, tags[side]) for side, block in enumerate(sides)]

    def _modified(
        self,
        sides: Sequence[TokenBlock],
        indices: NDArray[np.int64],
        by_part: Sequence[tuple[Part, NDArray[np.int64]]],
    ) -> list[TokenBlock]:
        """Return the blocks of both sides with what modifiers draw for this epoch."""
        assert self._key is not None
        bounds = self.bounds(self._key, indices, self._stage)
        copies, places = np.divmod(indices, len(self.rows))
        columns = [_sentences(block) for block in sides]
        for part, chosen in by_part:
            modifier = part.modifier_in(self._stage)
            if modifier is None:
                continue
            pairs = [(columns[0][place], columns[1][place]) for place in chosen]
            numbers = copy_numbers(self.rows[places[chosen]], copies[chosen])
            changed = modifier(pairs, numbers, self._key)
            room = bounds[chosen] - [len(tags) for tags in part.tags]
            for place, pair, most in zip(chosen, changed, room.tolist(), strict=True):
                # where there is no room in the batch, the pair stays as it is
                if all(len(ids) <= limit for ids, limit in zip(pair, most, strict=True)):
                    for column, ids in zip(columns, pair, strict=True):
                        column[place] = ids
        return [TokenBlock.of(column) for column in columns]


def _sentences(block: TokenBlock) -> list[list[int]]:
    return [ids.tolist() for ids in np.split(block.tokens, np.cumsum(block.lengths)[:-1])]
