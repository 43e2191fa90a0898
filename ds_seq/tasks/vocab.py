"""The vocabulary step of `ds-seq prepare`: train what is missing or out of date in `data.dir`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ds_seq.config.data import DataConfig
from ds_seq.config.vocab import VocabFields
from ds_seq.data.expected import side_options
from ds_seq.names import SENTENCEPIECE
from ds_seq.tasks.step import Step
from ds_seq.text.build import load_tokenizers, read_tokenizer, train_tokenizer, vocab_notes
from ds_seq.text.lines import PairPath, text_fingerprint
from ds_seq.text.tokenizer import Tokenizer, Tokenizers
from ds_seq.text.vocab_file import read_vocab_file, save_tokenizer, vocab_paths

_NOT_OURS = (
    "this command had made another vocabulary there; if you have not replaced it, it is damaged: "
    "remove it, and run the command again"
)


def make_vocab(
    data: DataConfig, text: PairPath | None, force: bool
) -> tuple[Tokenizers, dict[str, Any] | None]:
    """Train the tokenizers in the data folder if they are missing or out of date.

    Args:
        data: section `data`.
        text: clean training text; None if there is none, as for files that were made elsewhere.
        force: whether to train tokenizers that are up to date.

    Returns:
        The tokenizers, and the options of `data.vocab` that they were trained with, as far as they
        are known; None if they were copied there.

    Raises:
        UserError: a tokenizer cannot be trained, or the one in the folder cannot be read.
    """
    parts, paths = data.vocab.parts, vocab_paths(data.dir, data.vocab.joint)
    sides = [] if text is None else list(text)
    texts = [sides] if data.vocab.joint else [sides[:1], sides[1:]]
    known: dict[str, Any] | None = {"joint": data.vocab.joint}
    for (side, vocab), path, own in zip(parts.items(), paths, texts, strict=True):
        options = _make_one(data, vocab, path, own, force)
        if options is None or known is None:
            known = None
        else:
            known |= {f"{side}.{key}" if side else key: value for key, value in options.items()}
    tokenizers = load_tokenizers(data, data.dir)
    # a joint vocabulary has one section and one file, but both sides
    for vocab, path, tokenizer in zip(parts.values(), paths, tokenizers, strict=False):
        for note in vocab_notes(vocab, tokenizer, path):
            print(f"    note: {note}")
    return tokenizers, known


def _make_one(
    data: DataConfig, vocab: VocabFields, path: Path, text: list[Path], force: bool
) -> dict[str, Any] | None:
    """Train the tokenizer of one file, or keep the file.

    Args:
        data: section `data`.
        vocab: the part of `data.vocab` that describes the tokenizer.
        path: its file.
        text: clean training text of the sides that it is for.
        force: whether to train although the file is up to date.

    Returns:
        Its options, as far as they are known; None if the file was copied there.
    """
    every = side_options(vocab)
    # as in records of earlier versions: without options of other kinds, and without newer ones
    left_out = {"name", "options"} if vocab.name == SENTENCEPIECE else set()
    newer = ("byte_fallback", "mask", "sentinels")
    left_out |= {key for key in newer if not every[key]}
    options = {key: value for key, value in every.items() if key not in left_out}
    inputs = [text_fingerprint(file) for file in _inputs(vocab, text)]
    step = Step(path.with_suffix(".json"), inputs, options, [path])
    if path.exists():
        if step.is_damaged():
            if (again := _trained_again(data, vocab, path, text)) is not None:
                step.record({"size": len(again)})
                print(f"vocabulary: the record of {path} was damaged, and is written again")
                return every
            step.forget()
        size = len(read_tokenizer(data, vocab, read_vocab_file(path), str(path)))
        if not step.made_outputs():
            print(
                f"vocabulary: using the existing {path} ({size:,} subwords), which was copied there"
            )
            if step.is_recorded():
                print(f"    note: {_NOT_OURS}")
            return None
        if not force and step.result_of_last_time() is not None:
            print(f"vocabulary: {path} is up to date, {size:,} subwords")
            return step.known(every)
    print(f"vocabulary: {_what(vocab, text)}", flush=True)
    tokenizer = train_tokenizer(data, vocab, text)
    step.announce([hashlib.sha256(tokenizer.to_bytes()).hexdigest()])
    save_tokenizer(tokenizer, path)
    step.record({"size": len(tokenizer)})
    print(f"vocabulary: {len(tokenizer):,} subwords -> {path}")
    return every


def _trained_again(
    data: DataConfig, vocab: VocabFields, path: Path, text: list[Path]
) -> Tokenizer | None:
    """Return the tokenizer if it would be trained like the one that exists, else None.

    Whether this command made it cannot be known otherwise if its record is damaged.
    """
    if not text and vocab.made_elsewhere is None:  # there is nothing to train it on
        return None
    print(f"vocabulary: training again, to compare with {path}", flush=True)
    tokenizer = train_tokenizer(data, vocab, text)
    return tokenizer if tokenizer.to_bytes() == path.read_bytes() else None


def _inputs(vocab: VocabFields, text: list[Path]) -> list[Path]:
    """Return the files that a tokenizer is made from."""
    if vocab.made_elsewhere is not None:
        paths = map(Path, vocab.made_elsewhere[1].files.values())
        return [file for path in paths for file in ([path] if path.is_file() else _files(path))]
    rule = vocab.normalization
    return [*text, Path(rule)] if rule.endswith(".tsv") else text


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder that a tokenizer is made of."""
    from ds_seq.text.huggingface import tokenizer_files

    return tokenizer_files(folder)


def _what(vocab: VocabFields, text: list[Path]) -> str:
    """Describe what is about to be done."""
    if vocab.made_elsewhere is not None:
        return f"reading {' and '.join(map(str, _inputs(vocab, text)))}"
    kind = vocab.model_type if vocab.name == SENTENCEPIECE else vocab.name
    names = " and ".join(map(str, text))
    return f"training {vocab.size:,} {kind} subwords on {names} (large texts take minutes)"


def needs_text(data: DataConfig) -> bool:
    """Return whether a vocabulary of the data folder is missing and must be trained on text."""
    paths = vocab_paths(data.dir, data.vocab.joint)
    return any(
        vocab.made_elsewhere is None and not path.exists()
        for vocab, path in zip(data.vocab.parts.values(), paths, strict=True)
    )
