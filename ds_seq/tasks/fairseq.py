"""Data in the format of fairseq: the vocabulary for them, and conversion in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.config.data import DataConfig, FairseqConfig
from ds_seq.data.alignments import (
    AlignmentReader,
    has_alignments,
    links_block,
    remove_alignments,
    writing_alignments,
)
from ds_seq.data.fairseq import (
    TRAIN,
    FairseqSource,
    Languages,
    find_parts,
    has_split,
    read_dictionaries,
)
from ds_seq.data.fairseq_files import IndexedFile
from ds_seq.data.fairseq_write import indexed_writer
from ds_seq.data.manifest import Manifest
from ds_seq.data.origin import Origin
from ds_seq.data.parallel import cleaning_up
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader, ShardWriter, manifest_path
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.names import SPLITS
from ds_seq.tasks.vocab import make_vocab, needs_text
from ds_seq.text.fairseq_dict import dictionary_bytes, symbol_ids
from ds_seq.text.fairseq_tokenizer import FairseqDictTokenizer
from ds_seq.text.tokenizer import Tokenizer, Tokenizers
from ds_seq.text.vocab_file import vocab_paths

_CHUNK = 10_000  # pairs that are converted at a time
_ALIGNED = ", with alignments"


def prepare_fairseq(data: DataConfig, force: bool) -> None:
    """Make the vocabulary for a source `fairseq`, and report what is in its folders.

    Args:
        data: section `data`, whose source is `fairseq`.
        force: whether to make a vocabulary that is up to date again.

    Raises:
        UserError: the vocabulary cannot be made without text, or the data do not match it.
    """
    source = data.source
    assert isinstance(source, FairseqConfig)
    with _locked(Path(data.dir)):
        tokenizers, _ = _vocab(data, force)
    folders = [Path(folder) for folder in source.folders]
    for split in _splits(folders, data.fairseq_languages):
        reader = FairseqSource(folders, split, data.fairseq_languages, tokenizers)
        print(f"{split}: {_counts(reader.lengths, data)}")
    print(
        "the data are read where they are; for commands that read shards (pseudo-label, "
        "teacher-cache, moe-stats), convert them: ds-seq convert-data --from-fairseq"
    )


def from_fairseq(data: DataConfig, folders: Sequence[Path], languages: tuple[str, str]) -> None:
    """Write the shards of all splits in folders of fairseq-preprocess to `data.dir`.

    Args:
        data: section `data`, which sets folder, vocabulary, languages and size of the shards.
        folders: the folders; see `ds_seq.data.fairseq`.
        languages: source and target language in the names of the files.

    Raises:
        UserError: files are missing or damaged, or do not match the vocabulary.
    """
    out = Path(data.dir)
    if data.num_sides == 1:
        raise UserError(
            "data.language: text of one side is read where it is; set data.source: {name: fairseq, "
            "folders: [...]}"
        )
    with _locked(out):
        tokenizers, options = _vocab(data, force=False)
        splits = _splits(folders, languages)
        for split in splits:
            reader = FairseqSource(folders, split, languages, tokenizers)
            writer = ShardWriter(
                out,
                split,
                vocab_hash=reader.vocab_hash,
                vocab_size=reader.vocab_size,
                languages=(data.source_lang, data.target_lang),
                shard_size=data.shard_size,
                inputs=[reader.fingerprint],
                origin=Origin(vocab=options),
            )
            with cleaning_up(), writer, Progress(f"converting {split}", len(reader)) as progress:
                for source, target in _blocks(reader):
                    writer.add_block(source, target)
                    progress(len(source.lengths))
            links = _copy_alignments(folders, split, languages, out, tokenizers)
            print(f"{split}: {_counts(reader.lengths, data)}{links} -> {out}")


def to_fairseq(data: DataConfig, tokenizers: Tokenizers, out: Path) -> None:
    """Write the shards of `data.dir` as fairseq-preprocess would have, with their dictionaries.

    Args:
        data: section `data`.
        tokenizers: its tokenizers.
        out: a new or empty folder.

    Raises:
        UserError: there are no shards, the folder is not empty, or fairseq could not read a symbol.
    """
    folder, languages = Path(data.dir), data.file_ends
    suffix = ".manifest.json"
    splits = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
    if not splits:
        Manifest.read(manifest_path(folder, TRAIN))  # explains what is missing
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already and is not empty; give a new folder")
    sides = [_Symbols(tokenizer) for tokenizer in tokenizers]
    with _locked(out):
        for split in splits:
            reader = ShardReader(folder, split, tokenizers.fingerprint)
            prefix = f"{split}.{languages[0]}-{languages[1]}"
            with ExitStack() as stack:
                progress = stack.enter_context(Progress(f"converting {split}", len(reader)))
                writers = [
                    stack.enter_context(indexed_writer(out / f"{prefix}.{language}", side.size))
                    for language, side in zip(languages, sides, strict=True)
                ]
                for pair in _blocks(reader):
                    for side, writer, block in zip(sides, writers, pair, strict=True):
                        writer.add(side.converted(block, count=split == TRAIN))
                    progress(len(pair[0].lengths))
            links = ""
            if has_alignments(folder, split):
                alignments = AlignmentReader(folder, split, reader)
                path = out / f"{split}.align.{languages[0]}-{languages[1]}"
                with indexed_writer(path, None) as writer:
                    for rows in _rows(len(reader)):
                        writer.add(alignments.block(rows))
                links = _ALIGNED
            print(f"{split}: {_counts(reader.lengths, data)}{links} -> {out}")
        if data.vocab.joint:  # as fairseq does with --joined-dictionary
            counts = sides[0].counts + sides[1].counts
            sides[0].counts = sides[1].counts = counts
        names = vocab_paths(folder, data.vocab.joint)
        for language, side, name in zip(languages, sides, (names[0], names[-1]), strict=True):
            files.write_bytes(out / f"dict.{language}.txt", side.dictionary(str(name)))


def _copy_alignments(
    folders: Sequence[Path],
    split: str,
    languages: tuple[str, str],
    out: Path,
    tokenizers: Tokenizers,
) -> str:
    """Write the alignments of a split next to its new shards; return what to say of it."""
    parts = find_parts(folders, split, languages)
    found = [_alignments_of(part) for part in parts]
    if not any(found):
        remove_alignments(out, split)
        return ""
    shards = ShardReader(out, split, tokenizers.fingerprint)
    first = 0
    with writing_alignments(out, split, shards) as writer:
        for part, path in zip(parts, found, strict=True):
            size = len(IndexedFile(part.with_name(f"{part.name}.{languages[0]}")))
            lengths = shards.lengths[first : first + size]
            first += size
            if path is None:
                writer.add(links_block([[]] * size))
                continue
            file = IndexedFile(path)
            if len(file) != size:
                raise UserError(
                    f"{file.path}: has {len(file):,} alignments, but {part} {size:,} pairs; run "
                    "fairseq-preprocess again"
                )
            is_reversed = part.name.endswith(f".{languages[1]}-{languages[0]}")
            for rows in _rows(size):
                writer.add(_checked_links(file, rows, lengths[rows], is_reversed))
    return _ALIGNED


def _alignments_of(part: Path) -> Path | None:
    name, _, pair = part.name.partition(".")
    path = part.with_name(f"{name}.align.{pair}")
    return path if path.with_name(f"{path.name}.idx").is_file() else None


def _checked_links(
    file: IndexedFile, rows: NDArray[np.int64], sizes: NDArray[np.int32], is_reversed: bool
) -> TokenBlock:
    """Read links, whose tokens must exist in sentences with these lengths (N, 2)."""
    tokens, lengths = file.gather(rows)
    if (lengths % 2).any():
        raise UserError(f"{file.path}: holds half a link; run fairseq-preprocess again")
    links = tokens.reshape(-1, 2)
    links = links[:, ::-1] if is_reversed else links
    bounds = np.repeat(sizes, lengths // 2, axis=0)
    if (links < 0).any() or (links >= bounds).any():
        raise UserError(
            f"{file.path}: links tokens that do not exist; it must be made for the text as it was "
            "split into subwords"
        )
    return TokenBlock(links.reshape(-1), lengths)


class _Symbols:
    """Ids and counts of one side in fairseq's order."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = symbol_ids(tokenizer)
        table = np.zeros(len(tokenizer), np.int64)
        table[self._ids[self._ids >= 0]] = np.flatnonzero(self._ids >= 0)
        self._table = table
        self.size = len(self._ids)
        self.counts = np.zeros(self.size, np.int64)

    def converted(self, block: TokenBlock, count: bool) -> TokenBlock:
        """Return a block with fairseq's ids; count them if they are of the training text."""
        tokens = self._table[block.tokens]
        if count:
            self.counts += np.bincount(tokens, minlength=self.size)
        return TokenBlock(tokens, block.lengths)

    def dictionary(self, name: str) -> bytes:
        """Return the `dict.txt`: that of a vocabulary of fairseq as it was."""
        if isinstance(self._tokenizer, FairseqDictTokenizer):
            return self._tokenizer.dictionary_bytes
        pieces = self._tokenizer.pieces(self._ids[4:].tolist())
        return dictionary_bytes(pieces, self.counts[4:].tolist(), name)


def _vocab(data: DataConfig, force: bool) -> tuple[Tokenizers, dict[str, object] | None]:
    if needs_text(data):
        names = " and ".join(map(str, vocab_paths(data.dir, data.vocab.joint)))
        raise UserError(
            f"{names}: missing: copy the vocabulary with which the text was split there, or set "
            "data.vocab.name=fairseq_dict and data.vocab.fairseq to make one of fairseq's files"
        )
    return make_vocab(data, None, force)


def _locked(folder: Path) -> files.Lock:
    return files.Lock(folder / files.LOCK_FILE, folder, "wait for it, or give another folder")


def _splits(folders: Sequence[Path], languages: Languages) -> list[str]:
    """Return the splits of a folder, of which `train` must be there."""
    find_parts(folders, TRAIN, languages)
    read_dictionaries(folders, languages)
    return [split for split in SPLITS if has_split(folders[0], split, languages)]


def _blocks(
    reader: FairseqSource | ShardReader,
) -> Iterator[tuple[TokenBlock, ...]]:
    for rows in _rows(len(reader)):
        yield reader.gather(rows)


def _rows(size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of all pairs, some at a time."""
    for start in range(0, size, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, size))


def _counts(lengths: NDArray[np.int32], data: DataConfig) -> str:
    if data.num_sides == 1:
        return f"{len(lengths):,} lines, {lengths.sum(dtype=np.int64):,} tokens"
    source, target = lengths.sum(axis=0, dtype=np.int64)
    return (
        f"{len(lengths):,} pairs, {source:,} {data.source_lang} and {target:,} "
        f"{data.target_lang} tokens"
    )
