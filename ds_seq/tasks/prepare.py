"""Prepare the data of a translation: raw text -> clean text -> vocabulary -> shards.

Everything is written to `data.dir`::

    clean/train.de ...    normalized and filtered text; valid and test are only normalized
    clean/train.json ...  inputs of the clean text, and counts of dropped pairs
    clean/reports/train.json, .txt  what was dropped by which filter, with examples
    clean/train.places ... which raw pair each pair was, if the text has alignments
    clean/valid.overlap.json ...  counts of its pairs that are in the training text, too
    vocab.model           joint tokenizer of the clean training text; without `data.vocab.joint`
                          vocab.source.model and vocab.target.model
    vocab.json            inputs of the tokenizer
    train.0000.src.bin ...  shards, see `ds_seq.data.shards`
    train.align.bin ...   links between their tokens, see `ds_seq.data.alignments`

A step is skipped if its inputs and options have not changed since the last time. A `vocab.model`
that was not created by this command (but copied to share it between experiments) is used and never
replaced.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ds_seq import files
from ds_seq.config.data import DataConfig, FairseqConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.binarize import binarize, is_current, remove_work
from ds_seq.data.clean import clean_corpora, normalize_corpus
from ds_seq.data.cleaning.report import CleanReport
from ds_seq.data.expected import alignment_files, clean_options, raw_files
from ds_seq.data.manifest import CorpusRecord, Manifest
from ds_seq.data.origin import Origin, TextRecord, text_records
from ds_seq.data.overlap import Overlap, find_overlap
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader, manifest_path
from ds_seq.data.source import untagged_rows
from ds_seq.errors import UserError
from ds_seq.names import SIDES, SPLITS
from ds_seq.scores.languages import language_warning
from ds_seq.tasks.alignments import AlignedText, make_alignments
from ds_seq.tasks.corpora import (
    build_corpora,
    corpus_records,
    count_each,
    inputs_of_cleaning,
    named_texts,
)
from ds_seq.tasks.fairseq import prepare_fairseq
from ds_seq.tasks.step import Step
from ds_seq.tasks.vocab import make_vocab
from ds_seq.text.build import build_normalizer
from ds_seq.text.lines import PairPath, count_pairs, decode_lines, read_blocks, text_fingerprint
from ds_seq.text.normalize import Normalizer
from ds_seq.text.round_trip import changes
from ds_seq.text.tags import language_tags, untagged
from ds_seq.text.tokenizer import Tokenizers

PAIRS_PER_WORKER = 100_000  # with fewer pairs, starting a process costs more time than it saves
_MOST_CHECKED = 5_000  # lines of a text that are encoded and decoded for comparison


def prepare(config: ExperimentConfig, force: bool = False) -> None:
    """Create the clean text, the vocabulary and the shards of an experiment.

    Args:
        config: experiment; only its `data` section is used.
        force: whether to repeat steps that are up to date.
    """
    data = config.data
    if isinstance(data.source, FairseqConfig):
        prepare_fairseq(data, force)
        return
    if not data.entries("train"):
        example = "source: corpus.en, target: corpus.de" if data.num_sides == 2 else "text: a.txt"
        raise UserError(
            "data.raw.train: missing: set the training text, for example\n"
            f"  data: {{raw: {{train: {{{example}}}}}}}"
        )
    raw = {split: texts for split in SPLITS if (texts := raw_files(data, split))}
    inputs = [path for pairs in raw.values() for pair in pairs for path in pair]
    for output in (path for split in raw for path in _clean_text(data, split)):
        files.check_not_input(output, inputs)
    folder = Path(data.dir)
    # a folder that cannot be written may still be up to date
    advice = "wait for it, or set another data.dir"
    lock = files.Lock(folder / files.LOCK_FILE, folder, advice) if _is_writable(folder) else None
    with lock or nullcontext(), files.remembering():
        if lock is not None:
            for place in (folder, folder / "clean"):
                with files.writing(place):
                    files.remove_leftovers(place)
        _make_all(data, raw, force)


def _is_writable(folder: Path) -> bool:
    return not folder.exists() or os.access(folder, os.W_OK)


def _make_all(data: DataConfig, raw: dict[str, list[PairPath]], force: bool) -> None:
    """Take all steps for the given raw text of each split."""
    if not force:
        for split in raw:
            _refuse_labels(data, split)
    texts, origins, corpora = {}, {}, {}
    for split, pairs in raw.items():
        records = text_records(pairs)
        texts[split], cleaning, sizes = _clean_split(data, split, pairs, records, force)
        origins[split] = Origin(tuple(records), cleaning)
        corpora[split] = corpus_records(named_texts(data, split), sizes, data.languages)
    _report_overlap(data, texts, force)
    tokenizers, vocab = make_vocab(data, texts["train"], force)
    for split, text in texts.items():
        origin = replace(origins[split], vocab=vocab)
        _make_shards(data, split, text, tokenizers, origin, corpora[split], force)
        reader = ShardReader(data.dir, split, tokenizers.fingerprint)
        aligned = AlignedText(raw[split], alignment_files(data, split), text, _places(data, split))
        workers = _workers(data, len(reader))
        make_alignments(split, aligned, reader, Path(data.dir), tokenizers, workers, force)
        if split != "train" and data.num_sides == 2:
            _report_references(split, raw[split], tokenizers, data.target_lang)


def _refuse_labels(data: DataConfig, split: str) -> None:
    """Refuse to replace the translations of a teacher by the original text."""
    try:
        labels = Manifest.read(manifest_path(data.dir, split)).origin.labels
    except UserError:  # there are none, or they are damaged and will be made again
        return
    if labels is not None:
        raise UserError(
            f"{data.dir}: the targets of the {split} shards are translations by {labels} "
            "(ds-seq pseudo-label), which prepare would replace by the original text; give another "
            "data.dir, or --force"
        )


def _clean_text(data: DataConfig, split: str) -> PairPath:
    """Return the files of the clean text of a split."""
    folder = Path(data.dir) / "clean"
    ends = data.file_ends if data.language is None else [data.language]
    return PairPath.of(*(folder / f"{split}.{end}" for end in ends))


def _places(data: DataConfig, split: str) -> Path | None:
    """Return the file that says which raw pair each clean pair was; None if nothing needs it."""
    if split != "train" or not any(alignment_files(data, split)):
        return None
    return Path(data.dir) / "clean" / f"{split}.places"


def _workers(data: DataConfig, num_pairs: int) -> int:
    cores = data.workers or len(os.sched_getaffinity(0))
    return min(cores, 1 + num_pairs // PAIRS_PER_WORKER)


def _unit(data: DataConfig) -> str:
    return "pairs" if data.num_sides == 2 else "lines"


class CleanText(NamedTuple):
    """The clean text of a split.

    Attributes:
        files: its two files.
        options: the options of `data.clean` that it was made with, as far as they are known.
        sizes: number of pairs of each of its corpora; empty if it has none with a name.
    """

    files: PairPath
    options: dict[str, Any]
    sizes: dict[str, int]


def _clean_split(
    data: DataConfig, split: str, raw: list[PairPath], records: list[TextRecord], force: bool
) -> CleanText:
    """Write the clean text of one split unless it is up to date."""
    text = _clean_text(data, split)
    step = Step(
        text.source.with_name(f"{split}.json"),
        inputs=[record.identity for record in records] + inputs_of_cleaning(data, split),
        options=clean_options(data, split),
        outputs=[*text, *([] if (places := _places(data, split)) is None else [places])],
    )
    result = None if force else step.result_of_last_time()
    named = named_texts(data, split)
    if result is not None and "kept" in result and [*result.get("corpora", {})] == [*named]:
        print(f"{split}: clean text is up to date, {result['kept']:,} {_unit(data)}")
        return CleanText(text, step.known(clean_options(data, split)), result.get("corpora", {}))
    total = count_pairs(raw)
    with Progress(f"cleaning {split}", total) as progress:
        if split == "train":
            corpora, workers = build_corpora(data, raw), _workers(data, total)
            report = clean_corpora(corpora, text, workers, progress, places=places)
            if places is None:
                text.source.with_name(f"{split}.places").unlink(missing_ok=True)
            _write_report(report, text.source.parent / "reports", split)
            sizes = {corpus.name: corpus.kept for corpus in report.corpora if named}
        else:
            report = CleanReport(normalize_corpus(raw, text, build_normalizer(data), progress))
            sizes = count_each(data, split)
    step.record({**report.summary(), "corpora": sizes})
    print(
        f"{split}: kept {report.kept:,} of {report.total:,} {_unit(data)} -> "
        f"{', '.join(map(str, text))}"
    )
    for reason, number in report.dropped.items():
        if number:
            print(f"    dropped {number:>12,}  {reason}")
    return CleanText(text, clean_options(data, split), sizes)


def _write_report(report: CleanReport, folder: Path, split: str) -> None:
    report.write(folder / f"{split}.json")
    with files.writing(folder):
        files.write_sums(folder)


def _report_overlap(data: DataConfig, texts: dict[str, PairPath], force: bool) -> None:
    """Print how many pairs of the other splits are in the training text, where they score well."""
    held_out = [split for split in texts if split != "train"]
    train = [text_fingerprint(path) for path in texts["train"]] if held_out else []
    for split in held_out:
        step = Step(
            Path(data.dir) / "clean" / f"{split}.overlap.json",
            inputs=[*train, *(text_fingerprint(path) for path in texts[split])],
            options={},
            outputs=[],
        )
        found = None if force else step.result_of_last_time()
        if found is not None and found.keys() >= set(Overlap._fields):
            overlap = Overlap(found["total"], found["pairs"], found["sources"])
        else:
            overlap = find_overlap(texts["train"], texts[split])
            if _is_writable(Path(data.dir)):
                step.record(overlap._asdict())
        if overlap.pairs and data.num_sides == 1:
            print(
                f"{split}: warning: {overlap.pairs:,} of {overlap.total:,} lines are in the "
                "training text, too, which lowers the perplexity. Remove them from data.raw.train"
            )
        elif overlap.pairs or overlap.sources:
            print(
                f"{split}: warning: {overlap.pairs:,} of {overlap.total:,} pairs are in the "
                f"training text, too, and {overlap.sources:,} more sources with another "
                f"translation; scores of them mean little. Remove them from data.raw.train"
            )


def _report_references(
    split: str, raw: list[PairPath], tokenizers: Tokenizers, target_lang: str
) -> None:
    """Report references that no translation can equal, or that metrics cannot compare.

    The vocabulary may change them, and they may not be in the language of the target.
    """
    always = Normalizer(nfkc=False, fold_spaces=False)
    for pair in raw:
        for block in islice(read_blocks([pair], _MOST_CHECKED), 1):
            texts = [always(line) for line in decode_lines(block)[1]]
            if warning := language_warning(texts, target_lang):
                print(f"{split}: {pair.target} {warning} (data.target_lang)")
            changed = list(changes(tokenizers.target, texts))
            if changed:
                first = changed[0]
                at = block.first_line + first.number - 1  # a header is a line, too
                print(
                    f"{split}: {len(changed):,} of {len(texts):,} lines of {pair.target} do not "
                    "come out of the vocabulary as they are, so a perfect translation differs from "
                    f"them; {pair.form.unit} {at}: {first.text!r} becomes {first.result!r}"
                )


def _make_shards(
    data: DataConfig,
    split: str,
    text: PairPath,
    tokenizers: Tokenizers,
    origin: Origin,
    corpora: tuple[CorpusRecord, ...],
    force: bool,
) -> None:
    languages = (data.source_lang, data.target_lang)
    if not force and is_current(data.dir, split, tokenizers, text, data.shard_size, corpora):
        print(f"{split}: shards are up to date")
        unknown = ""
        path = manifest_path(data.dir, split)
        manifest = Manifest.read(path)
        new = replace(manifest, languages=languages, origin=origin, corpora=corpora)
        if _is_writable(path.parent):
            remove_work(path.parent, split)
            if new != manifest:
                new.write(path)
    else:
        total = count_pairs([text])
        with Progress(f"binarizing {split}", total) as progress:
            report = binarize(
                tokenizers,
                text.source,
                text.target if data.num_sides == 2 else None,
                data.dir,
                split,
                languages=languages,
                shard_size=data.shard_size,
                origin=origin,
                corpora=corpora,
                workers=_workers(data, total),
                progress=progress,
            )
        unknown = f"; unknown {report.src_unknown / report.manifest.src_tokens:.3%}"
        if data.num_sides == 2:
            unknown += f" and {report.tgt_unknown / report.manifest.tgt_tokens:.3%}"
    reader = ShardReader(data.dir, split, tokenizers.fingerprint)
    if data.num_sides == 1:
        print(
            f"{split}: {len(reader):,} lines in {len(reader.manifest.shards)} shard(s), "
            f"{reader.manifest.src_tokens:,} tokens{unknown}"
        )
        return
    if not any(any(data.tags(entry)[0]) for entry in named_texts(data, split).values()):
        _report_untagged(data, split, text, reader, tokenizers)
    pairs = {entry.pair(data.languages) for entry in named_texts(data, split).values()}
    source, target = data.file_ends if len(pairs) < 2 else SIDES
    limits = np.array([data.max_source_length, data.max_target_length])
    too_long = (reader.lengths > limits).any(axis=1)
    print(
        f"{split}: {len(reader):,} pairs in {len(reader.manifest.shards)} shard(s), "
        f"{reader.manifest.src_tokens:,} {source} and "
        f"{reader.manifest.tgt_tokens:,} {target} tokens{unknown}; "
        f"{int(np.count_nonzero(too_long)):,} pairs exceed data.max_source_length "
        f"{data.max_source_length} or data.max_target_length {data.max_target_length} "
        f"(data.long_pairs: {data.long_pairs})"
    )


def _report_untagged(
    data: DataConfig, split: str, text: PairPath, reader: ShardReader, tokenizers: Tokenizers
) -> None:
    """Report sources without a language tag if others have one, or with an unknown tag."""
    tags = language_tags(tokenizers.source, data.language_tags)
    if not tags:
        for block in islice(read_blocks([text], _MOST_CHECKED), 1):
            lines = decode_lines(block)[0]
            if unknown := untagged(lines, tags):
                print(
                    f"{split}: {len(unknown):,} of the first {len(lines):,} sources begin with a "
                    f"language tag (line {unknown[0] + 1}: {lines[unknown[0]].split()[0]}) that is "
                    "not in data.vocab.user_symbols, so it is split into subwords"
                )
        return
    rows, size = untagged_rows(reader, tags)
    if 0 < len(rows) < size:
        print(
            f"{split}: {len(rows):,} of {size:,} sources begin with no language tag "
            f"({', '.join(tags.values())}); the first is pair {rows[0] + 1:,}"
        )
