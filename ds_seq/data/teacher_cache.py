"""Cache of a teacher's top tokens for every target token of a split: writer and reader.

A cache has its own folder, separate from the shards::

    train.teacher.json       manifest; written last
    train.teacher.00000.bin  part 0: a record for each target token of consecutive pairs
    train.teacher.00001.bin  ...
    train.teacher.plan.json  manifest of an unfinished cache

A record consists of the K most probable tokens, best first, as uint16 or uint32, followed by their
K log-probabilities as float16 or float32, little-endian. Records are in the order of the tokens in
the shards, so their positions follow from the lengths there. A pair that is too long for the
teacher has records of zeros.

Shapes: K kept tokens, N sentence pairs, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.cache_manifest import (
    PLAN_SUFFIX,
    REMAKE,
    SUFFIX,
    CacheManifest,
    StoredType,
    TeacherRecord,
    part_path,
)
from ds_seq.data.shards import check_ids, id_type
from ds_seq.data.source import TARGET, Source
from ds_seq.data.truncation import Limits, limits_of
from ds_seq.errors import UserError
from ds_seq.records import inside

Stored = Literal["fp16", "fp32"]
_STORED: dict[Stored, StoredType] = {"fp16": "float16", "fp32": "float32"}
_SETTINGS = {  # setting of the user behind each field of the manifest
    "vocab_hash": "vocabulary",
    "top_k": "--top-k",
    "ids": "size of the vocabulary",
    "log_probs": "--precision",
    "teachers": "teacher, --checkpoint or --dtype",
    "max_length": "max_positions of the teacher",
    "left_out": "pairs left out",
    "source": "the shards",
    "first": "--part-tokens",
    "cut": "--student",
}


def plan_cache(
    source: Source,
    top_k: int,
    stored: Stored,
    teachers: Sequence[TeacherRecord],
    max_length: int,
    part_tokens: int,
) -> CacheManifest:
    """Return the manifest of a cache to be written.

    Args:
        source: pairs of the cache.
        top_k: K, number of tokens per record.
        stored: number format of the log-probabilities.
        teachers: teachers whose outputs are stored.
        max_length: longest sentence that all teachers support.
        part_tokens: approximate number of target tokens per part, which contains whole pairs.
    """
    ends = np.cumsum(source.lengths[:, TARGET], dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(part_tokens, ends[-1], part_tokens)) + 1
    longest = source.lengths.max(axis=1)
    return CacheManifest(
        vocab_hash=source.vocab_hash,
        top_k=top_k,
        ids=id_type(source.vocab_size),
        log_probs=_STORED[stored],
        teachers=tuple(teachers),
        max_length=max_length,
        left_out=int((longest > max_length).sum()),
        source=source.fingerprint,
        first=tuple(np.unique([0, *cuts, len(source)]).tolist()),
        cut=limits_of(source),
    )


class CacheWriter:
    """Writer of the parts of a split, in any order and from any number of processes.

    Args:
        folder: folder of the cache; created by `start`.
        split: split of the shards.
        manifest: manifest of the finished cache.
        source: pairs of the cache.

    Attributes:
        folder: folder of the cache.
        split: split of the shards.
        manifest: manifest of the finished cache.
    """

    def __init__(self, folder: Path, split: str, manifest: CacheManifest, source: Source) -> None:
        self.folder, self.split, self.manifest = folder, split, manifest
        self._sizes = _part_sizes(manifest, source)
        self._path, self._plan = folder / f"{split}{SUFFIX}", folder / f"{split}{PLAN_SUFFIX}"

    def start(self) -> None:
        """Check that existing parts are compatible with the manifest, and write the plan.

        Raises:
            UserError: the parts were made with other settings, or the folder is not writable.
        """
        for path in (self._path, self._plan):
            if path.exists() and (other := CacheManifest.read(path)) != self.manifest:
                different = [
                    setting
                    for name, setting in _SETTINGS.items()
                    if getattr(self.manifest, name) != getattr(other, name)
                ]
                raise UserError(
                    f"{path}: was made with other settings ({', '.join(different)}); give the "
                    f"same ones, delete {self.folder}, or write elsewhere with --out"
                )
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(self.folder, f"{self.split}.teacher.*")
            if not self._path.exists():
                self.manifest.write(self._plan)

    def missing(self) -> list[int]:
        """Return the numbers of the missing parts; of a finished cache, also of damaged ones."""
        checksums: Sequence[str | None] = [None] * len(self._sizes)
        if self._path.exists():
            checksums = CacheManifest.read(self._path).checksums or checksums
        return [
            part
            for part, (size, checksum) in enumerate(zip(self._sizes, checksums, strict=True))
            if files.check_file(part_path(self.folder, self.split, part), size, checksum)
        ]

    @property
    def size(self) -> int:
        """Total size of all parts in bytes."""
        return sum(self._sizes)

    def num_tokens(self, part: int | None = None) -> int:
        """Return the number of target tokens of a part, or of all parts for None."""
        size = self.size if part is None else self._sizes[part]
        return size // self.manifest.record.itemsize

    def pairs(self, part: int) -> range:
        """Return the numbers of the pairs of a part."""
        return range(*self.manifest.first[part : part + 2])

    def write(self, part: int, records: NDArray[np.void]) -> None:
        """Write a part atomically.

        Args:
            part: number of the part.
            records: (T,) of type `CacheManifest.record`, one for each target token of `pairs`.
        """
        with files.replacing(part_path(self.folder, self.split, part)) as temporary:
            with open(temporary, "wb") as file:  # `tofile` does not say why it has failed
                file.write(records.data)

    def finish(self) -> None:
        """Mark the cache as finished, and record the checksums of its parts, which must exist."""
        if not self._plan.exists() and not self.missing():
            return
        paths = [part_path(self.folder, self.split, part) for part in range(len(self._sizes))]
        checksums = tuple(files.fingerprint(path) for path in paths)
        replace(self.manifest, checksums=checksums).write(self._path)
        self._plan.unlink(missing_ok=True)


class TeacherCache:
    """Memory-mapped outputs of a teacher for one split.

    Args:
        folder: folder written by `ds-seq teacher-cache`.
        split: split of the shards.
        source: pairs of the cache.

    Attributes:
        manifest: manifest of the cache.

    Raises:
        UserError: the cache is missing, unfinished or truncated, or was made for other shards.
    """

    def __init__(self, folder: str | Path, split: str, source: Source) -> None:
        self._folder = Path(folder)
        path = self._folder / f"{split}{SUFFIX}"
        if not path.is_file():
            raise UserError(_explain_missing(self._folder, split))
        self.manifest = CacheManifest.read(path)
        self._check(path, split, source)
        self._first = np.asarray(self.manifest.first)
        self._lengths, self._vocab_size = source.lengths[:, TARGET], source.vocab_size
        self._starts = np.empty(len(source), np.uint32)  # within the part
        # numpy copies untyped bytes ten times as fast as structured types
        self._opaque = np.dtype((np.void, self.manifest.record.itemsize))
        self._parts: list[NDArray[np.void]] = []
        for part, (first, last) in enumerate(pairwise(self.manifest.first)):
            lengths = self._lengths[first:last]
            self._starts[first:last] = np.cumsum(lengths) - lengths
            name = part_path(self._folder, split, part)
            self._parts.append(np.asarray(np.memmap(name, self._opaque, "r")))

    def _check(self, path: Path, split: str, source: Source) -> None:
        manifest = self.manifest
        if manifest.vocab_hash != source.vocab_hash:
            raise UserError(
                f"{path}: was made with vocabulary {manifest.vocab_hash[:12]}, the data has "
                f"{source.vocab_hash[:12]}; use a cache that was made for this data"
            )
        if manifest.source != source.fingerprint:
            raise UserError(
                f"{path}: was made for other shards than those of split {split!r}, which may have "
                "been rebuilt since; delete the cache and run `ds-seq teacher-cache` again"
            )
        if manifest.cut != limits_of(source):
            raise UserError(
                f"{path}: was made of {_cut_words(manifest.cut)}, but the training reads "
                f"{_cut_words(limits_of(source))} (data.long_pairs); run `ds-seq teacher-cache` "
                "with --student EXPERIMENT"
            )
        first = sorted({0, *manifest.first, len(source)})
        if list(manifest.first) != first:
            raise UserError(f"{path}: is damaged (its parts are not those of the data); {REMAKE}")
        sizes = _part_sizes(manifest, source)
        advice = "copy it again, or run `ds-seq teacher-cache` again"
        for part, size in enumerate(sizes):
            file = inside(self._folder, part_path(self._folder, split, part).name)
            is_cheap = manifest.checksums and sum(sizes) <= files.CHECKED_AT_LOAD
            damage = files.check_file(file, size, manifest.checksums[part] if is_cheap else None)
            if damage == "content":
                raise UserError(f"{file}: its content has changed (SHA-256 differs); {advice}")
            if damage is not None:
                actual = file.stat().st_size if file.exists() else 0
                raise UserError(
                    f"{file}: has {actual:,} bytes in place of {size:,} (an interrupted copy?); "
                    f"{advice}"
                )

    def describe(self) -> str:
        """Return a one-line description for the log."""
        names = ", ".join(teacher.source for teacher in self.manifest.teachers)
        return f"teacher from the cache {self._folder}: top {self.manifest.top_k} of {names}"

    def check_covers(self, lengths: NDArray[np.integer]) -> None:
        """Check that the cache covers all pairs of the given lengths (N, 2).

        Raises:
            UserError: some pairs were too long for the teacher.
        """
        limit = self.manifest.max_length
        if count := int((lengths.max(axis=1) > limit).sum()):
            raise UserError(
                f"{self._folder}: lacks {count:,} of {len(lengths):,} pairs, because its "
                f"teacher reads {limit} tokens; set data.max_source_length={limit} and "
                f"data.max_target_length={limit}, or less"
            )

    def gather(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Copy the outputs for some pairs.

        Args:
            rows: (N,) numbers of pairs in the shards; N may be 0.

        Returns:
            Ids (T, K) and logarithms of probabilities (T, K), a row for each target token.
        """
        parts = np.searchsorted(self._first, rows, side="right") - 1
        order = np.argsort(parts, kind="stable")  # all sentences of a part together
        lengths = self._lengths[rows]
        places = token_places(self._starts[rows][order], lengths[order])
        present, first = np.unique(parts[order], return_index=True)
        cuts = np.cumsum(lengths[order])[first[1:] - 1]
        records_by_part = [
            self._parts[part][here]
            for part, here in zip(present, np.split(places, cuts), strict=False)
        ]
        records = np.empty(len(places), self._opaque)
        if records_by_part:
            starts = np.cumsum(lengths) - lengths
            records[token_places(starts[order], lengths[order])] = np.concatenate(records_by_part)
        records = records.view(self.manifest.record)
        check_ids(records["ids"], self._vocab_size, self._folder, REMAKE)
        return records["ids"].astype(np.int64), records["log_probs"].astype(np.float32)


def token_places(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the positions (T,) of the tokens of sentences that start at `starts` (N,)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts.astype(np.int64) - ends + lengths, lengths) + np.arange(total)


def _part_sizes(manifest: CacheManifest, source: Source) -> list[int]:
    """Return the size of each part in bytes."""
    tokens = np.add.reduceat(source.lengths[:, TARGET], manifest.first[:-1], dtype=np.int64)
    return [int(count) * manifest.record.itemsize for count in tokens]


def _cut_words(limits: Limits) -> str:
    sides = [
        f"{side} of at most {most} tokens"
        for side, most in zip(("sources", "targets"), limits, strict=True)
        if most is not None
    ]
    return " and ".join(sides) or "whole pairs"


def _explain_missing(folder: Path, split: str) -> str:
    command = "ds-seq teacher-cache RUN --data SHARDS"
    if not folder.is_dir():
        return f"{folder}: no such cache; make it with `{command} --top-k 8 --out {folder}`"
    if (folder / f"{split}{PLAN_SUFFIX}").exists():
        return f"{folder}: split {split!r} is not finished; run the command that started it again"
    others = sorted(folder.glob(f"*{SUFFIX}"))
    if not others:
        return f"{folder}: contains no cache; make it with `{command} --top-k 8 --out {folder}`"
    manifest = CacheManifest.read(others[0])
    runs = " ".join(teacher.name for teacher in manifest.teachers)
    command = command.replace("RUN", runs)
    return (
        f"{folder}: lacks split {split!r}; make it with `{command} --top-k {manifest.top_k} "
        f"--splits {split} --out {folder}`"
    )
