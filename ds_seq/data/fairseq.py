"""The output of fairseq-preprocess as a source of examples, read where it is.

A folder holds `dict.LANG.txt` and `train.SRC-TGT.LANG.idx` and `.bin` of both languages, or of the
opposite direction; text of one side (`--only-source`) is `dict.txt`, `train.idx` and `train.bin`.
As in fairseq, `train1`, `train2`, ... continue `train`, and several folders may be named, the first
of which has the other splits and the dictionaries. Unlike in fairseq, which reads one folder in
each epoch, all folders together are one epoch.

Shapes: N sentence pairs, or lines of text of one side; S sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.blocks import prepend
from ds_seq.data.fairseq_files import IndexedFile
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.text.fairseq_dict import FAIRSEQ_SYMBOLS, Dictionary, id_map
from ds_seq.text.tokenizer import Tokenizer, Tokenizers
from ds_seq.text.vocab_file import read_vocab_file

TRAIN = "train"

Languages = tuple[str, ...]
"""Language codes of source and target in the names of the files; empty for text of one side."""


def open_fairseq(
    folder: str | Path,
    split: str,
    vocab_hash: str,
    *,
    folders: Sequence[str],
    languages: Languages,
    tokenizers: Tokenizers,
) -> FairseqSource:
    """Open a split; see `ds_seq.data.open`.

    Args:
        folder: value of `data.dir`, which this source does not read.
        split: name of the split.
        vocab_hash: fingerprint of the tokenizers.
        folders: folders that fairseq-preprocess wrote.
        languages: see `Languages`.
        tokenizers: tokenizers of the run.

    Raises:
        UserError: a file is missing or damaged, or the dictionaries do not match the vocabulary.
    """
    assert vocab_hash == tokenizers.fingerprint
    if languages and any(tokenizer.symbols.opening for tokenizer in tokenizers):
        raise UserError(
            "data.source: fairseq's files have no symbols of languages in front, which this "
            "vocabulary needs; train on text (data.raw)"
        )
    return FairseqSource([Path(name) for name in folders], split, languages, tokenizers)


class FairseqSource:
    """A `Source` of the sentence pairs, or lines, of a split in the format of fairseq.

    Args:
        folders: the folders.
        split: name of the split.
        languages: see `Languages`.
        tokenizers: tokenizers of the run, to whose ids those of fairseq's dictionaries are mapped.

    Attributes:
        lengths: (N, S) lengths of the sentences of each side, end symbol included.
        vocab_hash: fingerprint of the tokenizers.
        vocab_size: number of ids of the larger of the two.

    Raises:
        UserError: see `open_fairseq`.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        split: str,
        languages: Languages,
        tokenizers: Tokenizers,
    ) -> None:
        self.vocab_hash, self.vocab_size = tokenizers.fingerprint, tokenizers.size
        prefixes = find_parts(folders, split, languages)
        self._sides = [
            _Side([f"{prefix}{end}" for prefix in prefixes], dictionary, tokenizer)
            for end, dictionary, tokenizer in zip(
                _ends(languages), read_dictionaries(folders, languages), tokenizers, strict=False
            )
        ]
        first, last = self._sides[0], self._sides[-1]
        for source, target in zip(first.files, last.files, strict=True):
            if len(source) != len(target):
                raise UserError(
                    f"{source.path}: has {len(source):,} sentences, but {target.path} has "
                    f"{len(target):,}; run fairseq-preprocess on both sides again"
                )
        self.lengths: NDArray[np.int32] = np.stack([s.lengths() for s in self._sides], axis=1)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the examples; see `IndexedFile.fingerprint`."""
        parts = [side.fingerprint() for side in self._sides]
        return hashlib.sha256("\n".join([self.vocab_hash, *parts]).encode()).hexdigest()

    def gather(self, indices: NDArray[np.integer]) -> tuple[TokenBlock, ...]:
        """Copy the pairs or lines with the given numbers (N,), N >= 1."""
        return tuple(side.gather(np.asarray(indices)) for side in self._sides)


def find_parts(folders: Sequence[Path], split: str, languages: Languages) -> list[Path]:
    """Return the paths of all parts of a split, without the language and the suffix.

    Raises:
        UserError: a folder does not have the split.
    """
    parts: list[Path] = []
    for folder in folders if split == TRAIN else folders[:1]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name what fairseq-preprocess wrote")
        for number in count():
            name = f"{split}{number or ''}"
            found = _find(folder, name, languages)
            if found is None:
                break
            parts.append(found)
            if split != TRAIN:  # `valid1` is another split, not a part of `valid`
                break
        if not parts or parts[-1].parent != folder:
            raise UserError(f"{folder}: has no {_missing(folder, split, languages)}")
    return parts


def has_split(folder: Path, split: str, languages: Languages) -> bool:
    """Return whether a folder has a split."""
    return _find(folder, split, languages) is not None


def _ends(languages: Languages) -> list[str]:
    """Return what the names of the files of each side end with, without the suffix."""
    return [f".{language}" for language in languages] or [""]


def _missing(folder: Path, split: str, languages: Languages) -> str:
    """Return what is missing and what to do."""
    if not languages:
        more = ""
        if any(folder.glob(f"{split}.*-*.*.idx")):
            more = "; it has pairs: give source_lang and target_lang instead of language"
        return f"{split}.idx, text of one side that fairseq-preprocess --only-source writes{more}"
    pair = "-".join(languages)
    return (
        f"{split}.{pair}.{languages[0]}.idx, nor one of the opposite direction; check the folder "
        "and the languages (data.source)"
    )


def _find(folder: Path, name: str, languages: Languages) -> Path | None:
    if not languages:
        path = folder / name
        return path if (folder / f"{name}.idx").is_file() else None
    source, target = languages
    for pair in (f"{source}-{target}", f"{target}-{source}"):
        path = folder / f"{name}.{pair}"
        if path.with_name(f"{path.name}.{source}.idx").is_file():
            return path
    return None


def read_dictionaries(folders: Sequence[Path], languages: Languages) -> list[tuple[Path, bytes]]:
    """Return path and content of the dictionary of each side, those of the first folder.

    Raises:
        UserError: there are none, or another folder has different ones.
    """
    found = []
    for end in _ends(languages):
        path = folders[0] / f"dict{end}.txt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; fairseq-preprocess writes it next to its data")
        content = read_vocab_file(path)
        for folder in folders[1:]:
            other = folder / path.name
            if other.is_file() and read_vocab_file(other) != content:
                raise UserError(
                    f"{other}: differs from {path}, so the same ids mean other symbols; run "
                    "fairseq-preprocess with --srcdict and --tgtdict of the first folder"
                )
        found.append((path, content))
    return found


class _Side:
    """All parts of one side as one list of sentences."""

    def __init__(
        self, prefixes: Sequence[str], dictionary: tuple[Path, bytes], tokenizer: Tokenizer
    ) -> None:
        path, self._content = dictionary
        parsed = Dictionary.parse(self._content, str(path))
        self._dictionary, self._size = path, len(parsed)
        self._map = id_map(parsed, tokenizer, str(path))
        self.files = [IndexedFile(Path(prefix)) for prefix in prefixes]
        self._first = np.cumsum([0, *map(len, self.files)])
        self._opening = tokenizer.symbols.opening

    def lengths(self) -> NDArray[np.int32]:
        """(N,) lengths of all sentences, with the symbols in front of them."""
        lengths = np.concatenate([file.lengths for file in self.files])
        return lengths + np.int32(len(self._opening))

    def fingerprint(self) -> str:
        dictionary = hashlib.sha256(self._content).hexdigest()
        return "\n".join([dictionary, *(file.fingerprint for file in self.files)])

    def gather(self, indices: NDArray[np.integer]) -> TokenBlock:
        block = self._gathered(indices)
        return prepend(block, [self._opening] * len(indices)) if self._opening else block

    def _gathered(self, indices: NDArray[np.integer]) -> TokenBlock:
        parts = np.searchsorted(self._first, indices, side="right") - 1
        rows = indices - self._first[parts]
        present = np.unique(parts)
        if len(present) == 1:
            number = int(present[0])
            return self._own(self.files[number].gather(rows), self.files[number].path)
        lengths = np.empty(len(indices), np.int64)
        blocks = {}
        for number in present.tolist():
            chosen = parts == number
            file = self.files[number]
            blocks[number] = self._own(file.gather(rows[chosen]), file.path)
            lengths[chosen] = blocks[number].lengths
        tokens = np.empty(int(lengths.sum()), np.int64)
        for number, block in blocks.items():
            tokens[np.repeat(parts == number, lengths)] = block.tokens
        return TokenBlock(tokens, lengths)

    def _own(self, block: TokenBlock, path: Path) -> TokenBlock:
        """Turn ids of fairseq into ours, after checking that they are what they should be."""
        tokens, lengths = block
        last = tokens[np.cumsum(lengths) - 1]
        if int(lengths.min()) < 1 or (last != FAIRSEQ_SYMBOLS.eos).any():
            raise UserError(
                f"{path}: a sentence does not end with the end symbol; run fairseq-preprocess "
                "again with its default, which appends it"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._size:
            bad = int(tokens.min()) if int(tokens.min()) < 0 else int(tokens.max())
            raise UserError(
                f"{path}: holds the id {bad:,}, but {self._dictionary} has {self._size:,} symbols; "
                "use the dictionary that it was made with"
            )
        if self._map is None:
            return block
        own = self._map[tokens]
        if int(own.min()) < 0:
            raise UserError(
                f"{path}: holds the id {int(tokens[own.argmin()]):,} of {self._dictionary}, which "
                "is not in the vocabulary of the run; use another data.vocab"
            )
        return TokenBlock(own, lengths)
