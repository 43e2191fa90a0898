"""Prepare the data of a translation: raw text -> clean text -> vocabulary -> shards.

Everything is written to `data.dir`::

    clean/train.de ...    normalized and filtered text; valid and test are only normalized
    clean/train.json ...  inputs of the clean text, and counts of dropped pairs
    vocab.model           joint tokenizer of the clean training text
    vocab.json            inputs of the tokenizer
    train.0000.src.bin ...  shards, see `ds_seq.data.shards`

A step is skipped if its inputs and options have not changed since the last time. A `vocab.model`
that was not created by this command (but copied to share it between experiments) is used and never
replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ds_seq import files
from ds_seq.config.data import DataConfig, SplitConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.binarize import binarize, is_current
from ds_seq.data.clean import CleanOptions, CleanReport, clean, normalize_corpus
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.names import TOKENIZER_NAMES
from ds_seq.text.build import build_normalizer, load_tokenizers, train_tokenizer
from ds_seq.text.lines import PairPath, count_pairs, text_fingerprint
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import VOCAB_FILE, save_tokenizer

PAIRS_PER_WORKER = 100_000  # with fewer pairs, starting a process costs more time than it saves


def prepare(config: ExperimentConfig, force: bool = False) -> None:
    """Create the clean text, the vocabulary and the shards of an experiment.

    Args:
        config: experiment; only its `data` section is used.
        force: whether to repeat steps that are up to date.
    """
    data = config.data
    if not data.raw.train:
        raise UserError(
            "data.raw.train: missing: set the training text, for example\n"
            "  data: {raw: {train: {source: corpus.en, target: corpus.de}}}"
        )
    raw = {"train": data.raw.train, "valid": data.raw.valid, "test": data.raw.test}
    folder = Path(data.dir)
    # a folder that cannot be written may still be up to date
    writable = not folder.exists() or os.access(folder, os.W_OK)
    advice = "wait for it, or set another data.dir"
    with files.Lock(folder / files.LOCK_FILE, folder, advice) if writable else nullcontext():
        for place in (folder, folder / "clean"):
            with files.writing(place):
                files.remove_leftovers(place)
        texts = {
            split: _clean_split(data, split, [_pair(item) for item in pairs], force)
            for split, pairs in raw.items()
            if pairs
        }
        tokenizers = _make_vocab(data, texts["train"], force)
        for split, text in texts.items():
            _make_shards(data, split, text, tokenizers, force)


def _pair(split: SplitConfig) -> PairPath:
    return PairPath(Path(split.source), Path(split.target))


def _workers(data: DataConfig, num_pairs: int) -> int:
    cores = data.workers or len(os.sched_getaffinity(0))
    return min(cores, 1 + num_pairs // PAIRS_PER_WORKER)


def _clean_split(data: DataConfig, split: str, raw: list[PairPath], force: bool) -> PairPath:
    """Write the clean text of one split unless it is up to date; return its files."""
    folder = Path(data.dir) / "clean"
    text = PairPath(folder / f"{split}.{data.source_lang}", folder / f"{split}.{data.target_lang}")
    if text.source == text.target:
        raise UserError(
            f"data.source_lang and data.target_lang are both {data.source_lang!r}; give two names"
        )
    step = _Step(
        folder / f"{split}.json",
        inputs=[path for pair in raw for path in pair],
        options=data.clean.model_dump() if split == "train" else {"nfkc": data.clean.nfkc},
        outputs=list(text),
    )
    result = None if force else step.result_of_last_time()
    if result is not None:
        print(f"{split}: clean text is up to date, {result['kept']:,} pairs")
        return text
    total = count_pairs(raw)
    with Progress(f"cleaning {split}", total) as progress:
        if split == "train":
            limits = data.clean.model_dump(exclude={"nfkc"})
            options = CleanOptions(build_normalizer(data), **limits)
            report = clean(raw, text, options, _workers(data, total), progress)
        else:
            report = CleanReport(normalize_corpus(raw, text, build_normalizer(data), progress))
    step.record({"kept": report.kept, **asdict(report)})
    print(
        f"{split}: kept {report.kept:,} of {report.total:,} pairs -> {text.source}, {text.target}"
    )
    for reason, number in report.dropped.items():
        if number:
            print(f"    dropped {number:>12,}  {reason}")
    return text


def _make_vocab(data: DataConfig, text: PairPath, force: bool) -> Tokenizers:
    """Return the tokenizers in the data folder, training them if missing or out of date."""
    path = Path(data.dir) / VOCAB_FILE
    is_builtin = data.vocab.name in TOKENIZER_NAMES
    # without the options of other kinds, as in records of earlier versions
    options = data.vocab.model_dump(exclude={"name", "options"} if is_builtin else None)
    step = _Step(path.with_name("vocab.json"), list(text), options, [path])
    if path.exists():
        if not step.made_outputs():
            tokenizers = load_tokenizers(data, path)
            size = f"{tokenizers.size:,} subwords"
            print(f"vocabulary: using the existing {path} ({size}), which was copied there")
            return tokenizers
        if not force and step.result_of_last_time() is not None:
            tokenizers = load_tokenizers(data, path)
            print(f"vocabulary: {path} is up to date, {tokenizers.size:,} subwords")
            return tokenizers
    kind = data.vocab.model_type if is_builtin else data.vocab.name
    print(
        f"vocabulary: training {data.vocab.size:,} {kind} subwords on "
        f"{text.source} and {text.target} (large texts take minutes)",
        flush=True,
    )
    tokenizers = Tokenizers.shared(train_tokenizer(data, list(text)))
    step.announce([hashlib.sha256(tokenizers.target.to_bytes()).hexdigest()])
    save_tokenizer(tokenizers.target, path)
    step.record({"size": tokenizers.size})
    print(f"vocabulary: {tokenizers.size:,} subwords -> {path}")
    return tokenizers


def _make_shards(
    data: DataConfig, split: str, text: PairPath, tokenizers: Tokenizers, force: bool
) -> None:
    if not force and is_current(data.dir, split, tokenizers, text, data.shard_size):
        print(f"{split}: shards are up to date")
        unknown = ""
    else:
        total = count_pairs([text])
        with Progress(f"binarizing {split}", total) as progress:
            report = binarize(
                tokenizers,
                text.source,
                text.target,
                data.dir,
                split,
                languages=(data.source_lang, data.target_lang),
                shard_size=data.shard_size,
                workers=_workers(data, total),
                progress=progress,
            )
        shares = (
            report.src_unknown / report.manifest.src_tokens,
            report.tgt_unknown / report.manifest.tgt_tokens,
        )
        unknown = f"; unknown {shares[0]:.3%} and {shares[1]:.3%}"
    reader = ShardReader(data.dir, split, tokenizers.fingerprint)
    limits = np.array([data.max_source_length, data.max_target_length])
    too_long = (reader.lengths > limits).any(axis=1)
    print(
        f"{split}: {len(reader):,} pairs in {len(reader.manifest.shards)} shard(s), "
        f"{reader.manifest.src_tokens:,} {data.source_lang} and "
        f"{reader.manifest.tgt_tokens:,} {data.target_lang} tokens{unknown}; "
        f"{int(np.count_nonzero(too_long)):,} pairs exceed data.max_source_length "
        f"{data.max_source_length} or data.max_target_length {data.max_target_length}"
    )


class _Step:
    """A step from input to output files, and the record that allows skipping it next time."""

    def __init__(
        self, path: Path, inputs: list[Path], options: dict[str, Any], outputs: list[Path]
    ) -> None:
        self._path = path
        self._outputs = outputs
        self._made_from = {
            "inputs": [text_fingerprint(file) for file in inputs],
            "options": options,
        }

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def made_outputs(self) -> bool:
        """Return whether the outputs are exactly what this step has written."""
        record = self._read() or {}
        written = (record.get("outputs"), record.get("outputs_before"))
        return (
            all(file.exists() for file in self._outputs)
            and [files.fingerprint(file) for file in self._outputs] in written
        )

    def result_of_last_time(self) -> dict[str, Any] | None:
        """Return the result passed to `record` last time, or None if anything has changed."""
        record = self._read()
        if record is None or record.get("made_from") != self._made_from:
            return None
        result: dict[str, Any] | None = record.get("result")
        return result if self.made_outputs() else None

    def announce(self, outputs: list[str]) -> None:
        """Record what is about to be written: if it is there after a kill, this step made it.

        Args:
            outputs: SHA-256 of each output.
        """
        before = (self._read() or {}).get("outputs") if self.made_outputs() else None
        files.write_json(self._path, {"outputs": outputs, "outputs_before": before})

    def record(self, result: dict[str, Any]) -> None:
        """Record that the step is done.

        Args:
            result: JSON-serializable result, which `result_of_last_time` returns.
        """
        record = {
            "made_from": self._made_from,
            "outputs": [files.fingerprint(file) for file in self._outputs],
            "result": result,
        }
        files.write_json(self._path, record)
