"""What a teacher says about every target token of a split, on the disk: writer and reader.

A cache lies in a folder of its own beside the shards::

    train.teacher.json       what it is; written last
    train.teacher.00000.bin  part 0: a record for each target token of some pairs in a row
    train.teacher.00001.bin  ...
    train.teacher.plan.json  the manifest of a cache that is not finished

A record is the K most probable tokens, the best first, as uint16 or uint32, and then their K
logarithms of probabilities as float16 or float32, little-endian. Records stand in the order of the
tokens in the shards, so their place follows from the lengths there. A pair that the teacher cannot
read has records of zeros.

Legend: `K` kept tokens, `N` sentence pairs, `T` target tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.shards import files_fingerprint, id_dtype
from ds_seq.data.source import TARGET, Source
from ds_seq.errors import UserError

FORMAT_VERSION = 2
_SUFFIX = ".teacher.json"
_PLAN_SUFFIX = ".teacher.plan.json"
_REMAKE = "delete the file and run `ds-seq teacher-cache` again"

Stored = Literal["fp16", "fp32"]
_STORED: dict[Stored, str] = {"fp16": "float16", "fp32": "float32"}
_SETTINGS = {  # what a user can do about a field of the manifest
    "vocab_hash": "vocabulary",
    "top_k": "--top-k",
    "ids": "size of the vocabulary",
    "log_probs": "--precision",
    "teachers": "teacher, --checkpoint or --dtype",
    "max_length": "max_positions of the teacher",
    "left_out": "pairs left out",
    "source": "the shards",
    "first": "--part-tokens",
}


@dataclass(frozen=True)
class TeacherRecord:
    """One model whose answers are in a cache.

    Attributes:
        name: as it was asked for.
        source: the checkpoint or file of its weights.
        precision: number format in which it was run.
        weights: digest of its weights.
    """

    name: str = field(compare=False)
    source: str = field(compare=False)
    precision: str
    weights: str


@dataclass(frozen=True)
class CacheManifest:
    """Content of `<split>.teacher.json`.

    Attributes:
        vocab_hash: of the vocabulary that all ids belong to.
        top_k: K.
        ids: numpy name of the type of an id.
        log_probs: numpy name of the type of a logarithm.
        teachers: one, or those of an ensemble.
        max_length: longest sentence, of either side, that all teachers read.
        left_out: pairs with a longer one.
        source: fingerprint of the pairs.
        first: for each part its first pair; at the end the number of pairs.
    """

    vocab_hash: str
    top_k: int
    ids: str
    log_probs: str
    teachers: tuple[TeacherRecord, ...]
    max_length: int
    left_out: int
    source: str
    first: tuple[int, ...]

    @property
    def record(self) -> np.dtype:
        """What is kept of a token: `ids` (K,) and `log_probs` (K,)."""
        kinds = {
            name: np.dtype(kind)
            for name, kind in (("ids", self.ids), ("log_probs", self.log_probs))
        }
        return np.dtype([(n, k.newbyteorder("<"), (self.top_k,)) for n, k in kinds.items()])

    def write(self, path: Path) -> None:
        """Write JSON, in one step."""
        files.write_json(path, {"version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> CacheManifest:
        """Undo of `write`.

        Raises:
            UserError: damaged, or of another version.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw.pop("version")
            if version == 1:  # had the checksums that are the fingerprint of shards
                raw["source"], version = files_fingerprint(raw.pop("shards")), FORMAT_VERSION
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{path}: has format version {version}, but {FORMAT_VERSION} is needed; "
                    f"{_REMAKE}"
                )
            teachers = tuple(TeacherRecord(**item) for item in raw["teachers"])
            return cls(**{**raw, "teachers": teachers, "first": tuple(raw["first"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is damaged ({error}); {_REMAKE}") from None


def plan_cache(
    source: Source,
    top_k: int,
    stored: Stored,
    teachers: Sequence[TeacherRecord],
    max_length: int,
    part_tokens: int,
) -> CacheManifest:
    """Return the manifest of a cache that is to be written.

    Args:
        source: the pairs that it belongs to.
        top_k: K.
        stored: number format of the logarithms.
        teachers: who will be asked.
        max_length: longest sentence that all of them read.
        part_tokens: target tokens of a part, as near as whole pairs allow.
    """
    ends = np.cumsum(source.lengths[:, TARGET], dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(part_tokens, ends[-1], part_tokens)) + 1
    longest = source.lengths.max(axis=1)
    return CacheManifest(
        vocab_hash=source.vocab_hash,
        top_k=top_k,
        ids=id_dtype(source.vocab_size).name,
        log_probs=_STORED[stored],
        teachers=tuple(teachers),
        max_length=max_length,
        left_out=int((longest > max_length).sum()),
        source=source.fingerprint,
        first=tuple(np.unique([0, *cuts, len(source)]).tolist()),
    )


class CacheWriter:
    """Writes the parts of a split, in any order and by any number of processes.

    Args:
        folder: of the cache; made by `start`.
        split: of the shards.
        manifest: of the finished cache.
        source: the pairs.

    Attributes:
        folder, split, manifest: as given.
    """

    def __init__(self, folder: Path, split: str, manifest: CacheManifest, source: Source) -> None:
        self.folder, self.split, self.manifest = folder, split, manifest
        self._sizes = _part_sizes(manifest, source)
        self._path, self._plan = folder / f"{split}{_SUFFIX}", folder / f"{split}{_PLAN_SUFFIX}"

    def start(self) -> None:
        """Make sure that what is there already goes together with what will come.

        Raises:
            UserError: it was made with other settings, or nothing can be written here.
        """
        for path in (self._path, self._plan):
            if path.exists() and (other := CacheManifest.read(path)) != self.manifest:
                different = [
                    told
                    for name, told in _SETTINGS.items()
                    if getattr(self.manifest, name) != getattr(other, name)
                ]
                raise UserError(
                    f"{path}: was made with other settings ({', '.join(different)}); give the "
                    f"same ones, delete {self.folder}, or write elsewhere with --out"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(self.folder, f"{self.split}.teacher.*")
            if not self._path.exists():
                self.manifest.write(self._plan)
        except OSError as error:
            raise files.unwritable(self.folder, error) from error

    def missing(self) -> list[int]:
        """Return numbers of the parts that are not there."""
        paths = [_part_path(self.folder, self.split, part) for part in range(len(self._sizes))]
        return [
            part
            for part, (path, size) in enumerate(zip(paths, self._sizes, strict=True))
            if not path.exists() or path.stat().st_size != size
        ]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(self._sizes)

    def num_tokens(self, part: int | None = None) -> int:
        """Return target tokens of a part; None: of all."""
        size = self.size if part is None else self._sizes[part]
        return size // self.manifest.record.itemsize

    def pairs(self, part: int) -> range:
        """Return numbers of the pairs of a part."""
        return range(*self.manifest.first[part : part + 2])

    def write(self, part: int, records: NDArray[np.void]) -> None:
        """Put a part in its place, in one step.

        Args:
            part: its number.
            records: (T,) of `CacheManifest.record`, a record for each target token of `pairs`.
        """
        with files.replacing(_part_path(self.folder, self.split, part)) as temporary:
            records.tofile(temporary)

    def finish(self) -> None:
        """All parts are there: make it a cache."""
        assert not self.missing()
        if self._plan.exists():
            self._plan.replace(self._path)


class TeacherCache:
    """Memory-mapped answers of a teacher to one split.

    Args:
        folder: what `ds-seq teacher-cache` has written.
        split: of the shards.
        source: the pairs.

    Attributes:
        manifest: what is in it.

    Raises:
        UserError: missing, not finished, cut short, or made for other shards.
    """

    def __init__(self, folder: str | Path, split: str, source: Source) -> None:
        self._folder = Path(folder)
        path = self._folder / f"{split}{_SUFFIX}"
        if not path.is_file():
            raise UserError(_explain_missing(self._folder, split))
        self.manifest = CacheManifest.read(path)
        self._check(path, split, source)
        self._first = np.asarray(self.manifest.first)
        self._lengths = source.lengths[:, TARGET]
        self._starts = np.empty(len(source), np.uint32)  # within the part
        # bytes of which numpy knows no more are copied ten times as fast as structures
        self._opaque = np.dtype((np.void, self.manifest.record.itemsize))
        self._parts: list[NDArray[np.void]] = []
        for part, (first, last) in enumerate(pairwise(self.manifest.first)):
            lengths = self._lengths[first:last]
            self._starts[first:last] = np.cumsum(lengths) - lengths
            name = _part_path(self._folder, split, part)
            self._parts.append(np.asarray(np.memmap(name, self._opaque, "r")))

    def _check(self, path: Path, split: str, source: Source) -> None:
        manifest = self.manifest
        if manifest.vocab_hash != source.vocab_hash:
            raise UserError(
                f"{path}: was made with vocabulary {manifest.vocab_hash[:12]}, the data have "
                f"{source.vocab_hash[:12]}; name the cache of these data"
            )
        if manifest.source != source.fingerprint:
            raise UserError(
                f"{path}: was made for other shards than these of split {split!r}, which may have "
                "been made again since; delete the cache and run `ds-seq teacher-cache` again"
            )
        for part, size in enumerate(_part_sizes(manifest, source)):
            file = _part_path(self._folder, split, part)
            actual = file.stat().st_size if file.exists() else 0
            if actual != size:
                raise UserError(
                    f"{file}: has {actual:,} bytes in place of {size:,} (an interrupted copy?); "
                    f"copy it again, or delete it and {path} and run `ds-seq teacher-cache` again"
                )

    def describe(self) -> str:
        """Return one line for people."""
        names = ", ".join(teacher.source for teacher in self.manifest.teachers)
        return f"teacher from the cache {self._folder}: top {self.manifest.top_k} of {names}"

    def check_covers(self, lengths: NDArray[np.integer]) -> None:
        """Make sure that the teacher has read all pairs of these lengths (N, 2).

        Raises:
            UserError: some were too long for it.
        """
        limit = self.manifest.max_length
        if count := int((lengths.max(axis=1) > limit).sum()):
            raise UserError(
                f"{self._folder}: lacks {count:,} of {len(lengths):,} pairs, because its "
                f"teacher reads {limit} tokens; set data.max_source_length={limit} and "
                f"data.max_target_length={limit}, or less"
            )

    def gather(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Copy the answers to some pairs.

        Args:
            rows: (N,) numbers of pairs in the shards; any number of them, none included.

        Returns:
            Ids (T, K) and logarithms of probabilities (T, K), a row for each target token.
        """
        parts = np.searchsorted(self._first, rows, side="right") - 1
        order = np.argsort(parts, kind="stable")  # all sentences of a part together
        lengths = self._lengths[rows]
        places = token_places(self._starts[rows][order], lengths[order])
        present, first = np.unique(parts[order], return_index=True)
        cuts = np.cumsum(lengths[order])[first[1:] - 1]
        found = [
            self._parts[part][here]
            for part, here in zip(present, np.split(places, cuts), strict=False)
        ]
        records = np.empty(len(places), self._opaque)
        if found:
            starts = np.cumsum(lengths) - lengths
            records[token_places(starts[order], lengths[order])] = np.concatenate(found)
        records = records.view(self.manifest.record)
        return records["ids"].astype(np.int64), records["log_probs"].astype(np.float32)


def token_places(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Places (T,) of the tokens of sentences that start at `starts` (N,), one after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts.astype(np.int64) - ends + lengths, lengths) + np.arange(total)


def _part_path(folder: Path, split: str, part: int) -> Path:
    return folder / f"{split}.teacher.{part:05d}.bin"


def _part_sizes(manifest: CacheManifest, source: Source) -> list[int]:
    """Return bytes of each part."""
    tokens = np.add.reduceat(source.lengths[:, TARGET], manifest.first[:-1], dtype=np.int64)
    return [int(count) * manifest.record.itemsize for count in tokens]


def _explain_missing(folder: Path, split: str) -> str:
    command = "ds-seq teacher-cache RUN --data SHARDS"
    if not folder.is_dir():
        return f"{folder}: no such cache; make it with `{command} --top-k 8 --out {folder}`"
    if (folder / f"{split}{_PLAN_SUFFIX}").exists():
        return f"{folder}: split {split!r} is not finished; run the command that began it again"
    others = sorted(folder.glob(f"*{_SUFFIX}"))
    if not others:
        return f"{folder}: holds no cache; make it with `{command} --top-k 8 --out {folder}`"
    manifest = CacheManifest.read(others[0])
    runs = " ".join(teacher.name for teacher in manifest.teachers)
    command = command.replace("RUN", runs)
    return (
        f"{folder}: lacks split {split!r}; make it with `{command} --top-k {manifest.top_k} "
        f"--splits {split} --out {folder}`"
    )
