"""Turn the hypotheses of a teacher into a data folder to train on.

Shapes: N sentences, H hypotheses.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.manifest import Manifest
from ds_seq.data.parallel import map_in_order
from ds_seq.data.progress import Report, ignore
from ds_seq.data.shards import ShardReader, ShardWriter, check_ids, manifest_path
from ds_seq.data.source import SOURCE, TokenBlock
from ds_seq.distill.corpora import CorpusMarks, corpus_names
from ds_seq.distill.filters import Comparison, Filters, Similarity, compare
from ds_seq.distill.journal import Journals, Labels
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import save_tokenizers

_CHUNK = 10_000  # sentences that are processed at a time
_CHUNKS_PER_WORKER = 4  # with fewer, starting another process does not pay off
_SEED = 1  # of the random choice among the original pairs


@dataclass
class Summary:
    """Counts of written and dropped hypotheses.

    Attributes:
        hypotheses: number of hypotheses.
        dropped: number of dropped hypotheses by the first filter that they failed.
        labels: number of written labels.
        sentences: number of sentences that have labels.
        originals: number of pairs copied from the old data.
    """

    hypotheses: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    labels: int = 0
    sentences: int = 0
    originals: int = 0
    _scores: float = 0.0
    _ratios: float = 0.0

    @property
    def mean_score(self) -> float:
        """Mean of the teacher's scores of the labels."""
        return self._scores / max(self.labels, 1)

    @property
    def mean_ratio(self) -> float:
        """Mean ratio of the labels' token counts to those of their sources."""
        return self._ratios / max(self.labels, 1)

    def add(self, labels: Labels, ratios: NDArray[np.float64]) -> None:
        """Count written labels, given their ratios (H,) of target to source length."""
        self.labels += len(labels.rows)
        self.sentences += len(np.unique(labels.rows))
        self._scores += float(labels.scores.sum(dtype=np.float64))
        self._ratios += float(ratios.sum())


class Sources(NamedTuple):
    """Sources of the pairs of the new split.

    Attributes:
        reader: reader of the old split.
        journals: the hypotheses for its source sentences.
        tokenizers: tokenizers of both splits.
        made_by: name of the model that has made the hypotheses, for the manifest.
    """

    reader: ShardReader
    journals: Journals
    tokenizers: Tokenizers
    made_by: str = "a teacher"


def assemble(
    sources: Sources,
    filters: Filters,
    original: float,
    folder: Path,
    split: str,
    shard_size: int,
    workers: int = 1,
    progress: Report = ignore,
) -> Summary:
    """Write the new split: labels in the order of their sentences, then original pairs.

    Its corpora are those of `ds_seq.distill.corpora`.

    The output depends only on the arguments. The split is never partial.

    Args:
        sources: sources of the pairs.
        filters: filters that decide which hypotheses become labels.
        original: number of times to write every original pair; a fraction selects a reproducible
            random part.
        folder: folder of the new split.
        split: name of the split.
        shard_size: number of pairs per shard.
        workers: number of processes that compute metrics.
        progress: called with the number of hypotheses processed since the last call.

    Raises:
        UserError: there is no pair to write, or none of a corpus that has a name.
    """
    reader, journals, tokenizers, made_by = sources
    labels = journals.labels()
    summary = Summary(hypotheses=len(labels.rows))
    chosen = _choose_originals(len(reader), original)
    names = corpus_names(reader.manifest, len(chosen) > 0)
    if names is not None:
        chosen = chosen[np.argsort(names.of(chosen), kind="stable")]
    with ShardWriter(
        folder,
        split,
        vocab_hash=tokenizers.fingerprint,
        vocab_size=tokenizers.size,
        languages=reader.manifest.languages,
        shard_size=shard_size,
        origin=replace(reader.manifest.origin, labels=made_by),
    ) as writer:
        marks = CorpusMarks(writer, names)
        for count, passing in _filtered(sources, labels, filters, summary, workers):
            for part in marks.parts(passing.rows):
                summary.add(*_write_labels(writer, sources, passing.take(part), folder))
            progress(count)
        if summary.labels + len(chosen) == 0:
            raise UserError(_explain_nothing(summary))
        if reader.manifest.corpora and (missing := marks.without_pairs()):
            raise UserError(_explain_empty(missing))
        marks = CorpusMarks(writer, names, are_originals=True)
        for start in range(0, len(chosen), _CHUNK):
            _write_originals(writer, marks, reader, chosen[start : start + _CHUNK])
        summary.originals = len(chosen)
    return summary


def _write_labels(
    writer: ShardWriter, sources: Sources, labels: Labels, folder: Path
) -> tuple[Labels, NDArray[np.float64]]:
    """Write labels; return them with their ratios of target to source length."""
    source, target = sources.reader.gather(labels.rows)[0], sources.journals.gather(labels)
    check_ids(target.tokens, sources.tokenizers.size, folder, "remove it")
    writer.add_block(source, target)
    return labels, (target.lengths - 1) / (source.lengths - 1)


def _write_originals(
    writer: ShardWriter, marks: CorpusMarks, reader: ShardReader, rows: NDArray[np.int64]
) -> None:
    for part in marks.parts(rows):
        writer.add_block(*reader.gather(rows[part]))


def _choose_originals(num_pairs: int, times: float) -> NDArray[np.int64]:
    """Return the indices of the original pairs to write: all `times` times, by whole and part."""
    whole = int(times)
    part = round((times - whole) * num_pairs)
    drawn = np.sort(np.random.default_rng(_SEED).permutation(num_pairs)[:part])
    return np.concatenate([np.tile(np.arange(num_pairs), whole), drawn])


def _filtered(
    sources: Sources, labels: Labels, filters: Filters, summary: Summary, workers: int
) -> Iterator[tuple[int, Labels]]:
    """Yield, per chunk, the number of hypotheses examined and the labels that pass."""
    # split between sentences, so that all hypotheses of a sentence are in one chunk
    first = np.flatnonzero(np.diff(labels.rows, prepend=-1))  # (N,) first hypothesis of each
    cuts = [*first[::_CHUNK].tolist(), len(labels.rows)]
    spans = list(zip(cuts, cuts[1:], strict=False))
    passing: Iterator[Labels] = (
        _pass_by_numbers(sources.reader, labels.take(slice(*span)), filters, summary)
        for span in spans
    )
    if filters.metrics:
        passing = _pass_by_metrics(sources, passing, filters, summary, workers)
    for (start, stop), chunk in zip(spans, passing, strict=True):
        yield stop - start, chunk


def _pass_by_numbers(
    reader: ShardReader, labels: Labels, filters: Filters, summary: Summary
) -> Labels:
    """Apply the filters that need only scores and lengths."""
    source = reader.lengths[labels.rows, SOURCE] - 1.0  # (H,) without end symbols
    target = labels.lengths - 1.0
    tests = {"empty": target > 0}
    if filters.min_score is not None:
        tests["--min-score"] = labels.scores.astype(np.float64) >= filters.min_score
    if filters.max_ratio is not None:
        longer, shorter = np.maximum(source, target), np.minimum(source, target)
        tests["--max-ratio"] = longer <= filters.max_ratio * shorter
    return labels.take(_all_of(tests, len(labels.rows), summary))


def _pass_by_metrics(
    sources: Sources,
    chunks: Iterator[Labels],
    filters: Filters,
    summary: Summary,
    workers: int,
) -> Iterator[Labels]:
    """Apply the filters that compare hypotheses with references."""
    reader, journals, tokenizers, _ = sources
    target_lang = reader.manifest.languages[1]
    comparison = Comparison(tokenizers.target, Similarity(filters.metrics, target_lang))
    pending: deque[Labels] = deque()  # workers are a few chunks ahead

    def texts() -> Iterator[tuple[TokenBlock, TokenBlock]]:
        for labels in chunks:
            pending.append(labels)
            hypotheses = journals.gather(labels)
            yield hypotheses, reader.gather(labels.rows)[1] if len(labels.rows) else hypotheses

    for values in map_in_order(compare, comparison, texts(), workers):
        labels = pending.popleft()
        by_name = dict(zip(filters.metrics, values.T, strict=True))
        tests = {
            f"--min-{name}": by_name[name] >= least for name, least in filters.min_metric.items()
        }
        passing = _all_of(tests, len(labels.rows), summary)
        if filters.best_metric is not None:
            best = _best_of_each(labels.rows, by_name[filters.best_metric], passing)
            summary.dropped["--best-metric"] += int(passing.sum()) - int(best.sum())
            passing = best
        yield labels.take(passing)


def _all_of(tests: dict[str, NDArray[np.bool_]], count: int, summary: Summary) -> NDArray[np.bool_]:
    """Return a mask of the hypotheses that pass all tests; count others by the first they fail."""
    passing = np.ones(count, bool)
    for name, passed in tests.items():
        summary.dropped[name] += int((passing & ~passed).sum())
        passing &= passed
    return passing


def _best_of_each(
    rows: NDArray[np.int64], values: NDArray[np.float64], passing: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return a mask (H,) of the passing hypothesis with the highest value, per sentence."""
    places = np.flatnonzero(passing)
    order = places[np.lexsort((places, -values[places], rows[places]))]
    best = np.zeros_like(passing)
    best[order[np.flatnonzero(np.diff(rows[order], prepend=-1))]] = True
    return best


def workers_for(num_sentences: int) -> int:
    """Return the number of processes worth starting to compare this many sentences."""
    cores = len(os.sched_getaffinity(0))
    return min(cores, 1 + num_sentences // (_CHUNK * _CHUNKS_PER_WORKER))


def copy_rest(data: Path, out: Path, split: str, tokenizers: Tokenizers, joint: bool) -> None:
    """Copy the vocabulary and the other splits from the old data folder to the new one.

    Args:
        data: the old folder.
        out: the new folder.
        split: the split that is not copied.
        tokenizers: tokenizers of both folders.
        joint: whether source and target share one.
    """
    with files.writing(out):
        files.remove_leftovers(out)
    save_tokenizers(tokenizers, out, joint)
    suffix = ".manifest.json"
    for path in sorted(data.glob(f"*{suffix}")):
        other = path.name.removesuffix(suffix)
        if other == split:
            continue
        # the manifest comes last: if it exists, the split is complete
        for name in [*Manifest.read(path).files, manifest_path(out, other).name]:
            _link(data / name, out / name)


def _link(old: Path, new: Path) -> None:
    """Hard-link a file that is never written again, or copy it to another file system."""
    with files.replacing(new) as temporary:
        try:
            os.link(old.resolve(), temporary)
        except OSError:
            shutil.copyfile(old, temporary)


def _explain_nothing(summary: Summary) -> str:
    reasons = ", ".join(f"{count:,} by {name}" for name, count in summary.dropped.items() if count)
    return (
        f"not one of {summary.hypotheses:,} hypotheses is left (dropped: {reasons or 'none'}); "
        "run the same command with weaker filters: the decoded hypotheses are kept"
    )


def _explain_empty(corpora: list[str]) -> str:
    return (
        f"corpus {', '.join(corpora)}: no hypothesis is left, so a student could not take its "
        "share; run the same command with weaker filters: the decoded hypotheses are kept"
    )
