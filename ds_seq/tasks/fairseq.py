"""Data in the format of fairseq: the vocabulary for them, and conversion in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.config.data import DataConfig, FairseqConfig
from ds_seq.data.fairseq import TRAIN, FairseqSource, find_parts, read_dictionaries
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
            print(f"{split}: {_counts(reader.lengths, data)} -> {out}")


def to_fairseq(data: DataConfig, tokenizers: Tokenizers, out: Path) -> None:
    """Write the shards of `data.dir` as fairseq-preprocess would have, with their dictionaries.

    Args:
        data: section `data`.
        tokenizers: its tokenizers.
        out: a new or empty folder.

    Raises:
        UserError: there are no shards, the folder is not empty, or fairseq could not read a symbol.
    """
    folder, languages = Path(data.dir), (data.source_lang, data.target_lang)
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
            print(f"{split}: {_counts(reader.lengths, data)} -> {out}")
        if data.vocab.joint:  # as fairseq does with --joined-dictionary
            counts = sides[0].counts + sides[1].counts
            sides[0].counts = sides[1].counts = counts
        names = vocab_paths(folder, data.vocab.joint)
        for language, side, name in zip(languages, sides, (names[0], names[-1]), strict=True):
            files.write_bytes(out / f"dict.{language}.txt", side.dictionary(str(name)))


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


def _splits(folders: Sequence[Path], languages: tuple[str, str]) -> list[str]:
    """Return the splits of a folder, of which `train` must be there."""
    find_parts(folders, TRAIN, languages)
    read_dictionaries(folders, languages)
    source, target = languages
    pairs = (f"{source}-{target}", f"{target}-{source}")
    return [
        split
        for split in SPLITS
        if any((folders[0] / f"{split}.{pair}.{source}.idx").is_file() for pair in pairs)
    ]


def _blocks(
    reader: FairseqSource | ShardReader,
) -> Iterator[tuple[TokenBlock, TokenBlock]]:
    for start in range(0, len(reader), _CHUNK):
        yield reader.gather(np.arange(start, min(start + _CHUNK, len(reader))))


def _counts(lengths: NDArray[np.int32], data: DataConfig) -> str:
    source, target = lengths.sum(axis=0, dtype=np.int64)
    return (
        f"{len(lengths):,} pairs, {source:,} {data.source_lang} and {target:,} "
        f"{data.target_lang} tokens"
    )
