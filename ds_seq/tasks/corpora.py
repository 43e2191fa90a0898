"""The corpora of a split while it is prepared: which pairs of its clean text are whose."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.config.text_files import SplitConfig
from ds_seq.data.clean import CleanOptions, CleanReport, clean
from ds_seq.data.manifest import CorpusRecord
from ds_seq.data.progress import Report
from ds_seq.text.lines import PairPath, count_pairs


def clean_each(
    texts: Mapping[str, Sequence[PairPath]],
    output: PairPath,
    options: CleanOptions,
    workers: int,
    progress: Report,
) -> tuple[CleanReport, dict[str, int]]:
    """Clean several corpora one after the other into one text.

    Args:
        texts: raw files by corpus.
        output: the two files to write.
        options: normalization and filters.
        workers: number of processes.
        progress: called with the number of pairs of each finished block.

    Returns:
        Counts of all corpora, and the number of kept pairs of each.
    """
    report, kept = CleanReport(), {}
    parts = []
    for name, pairs in texts.items():
        part = PairPath(*(path.with_name(f"{path.name}.{name}") for path in output))
        found = clean(pairs, part, options, workers, progress)
        kept[name] = found.kept
        report.total += found.total
        for reason, number in found.dropped.items():
            report.dropped[reason] += number
        parts.append(part)
    for side, path in enumerate(output):
        with files.writing(path), files.replacing(path) as whole, open(whole, "wb") as file:
            for part in parts:
                with open(part[side], "rb") as text:
                    shutil.copyfileobj(text, file)
                part[side].unlink()
    return report, kept


def count_each(texts: Mapping[str, SplitConfig]) -> dict[str, int]:
    """Return the number of pairs of each text, of which none is dropped."""
    return {
        name: count_pairs([PairPath(Path(text.source), Path(text.target))])
        for name, text in texts.items()
    }


def corpus_records(
    texts: Mapping[str, SplitConfig], sizes: Mapping[str, int], languages: tuple[str, str]
) -> tuple[CorpusRecord, ...]:
    """Return the records of the corpora of a split for its manifest.

    Args:
        texts: the texts by name, in order.
        sizes: number of pairs of each of them.
        languages: languages of texts that name none.
    """
    records, first = [], 0
    for name, text in texts.items():
        records.append(CorpusRecord(name, first, sizes[name], text.pair(languages)))
        first += sizes[name]
    return tuple(records)
