"""From the hypotheses of a teacher to a data folder to train on.

Shapes: N sentences, H hypotheses.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.manifest import Manifest
from ds_seq.data.parallel import map_in_order
from ds_seq.data.progress import Report, ignore
from ds_seq.data.shards import ShardReader, ShardWriter, manifest_path
from ds_seq.data.source import SOURCE, TokenBlock
from ds_seq.distill.filters import Filters, Judge, Similarity, compare
from ds_seq.distill.journal import Journals, Labels
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Tokenizer, Tokenizers
from ds_seq.text.vocab_file import VOCAB_FILE, save_tokenizer

_CHUNK = 10_000  # sentences that are worked on at a time
_CHUNKS_PER_WORKER = 4  # fewer do not pay for the start of another process
_SEED = 1  # of the choice among the original pairs


@dataclass
class Summary:
    """What came of the hypotheses.

    Attributes:
        hypotheses: how many there were.
        dropped: how many were dropped, by the reason that came first.
        labels: how many were written.
        sentences: of how many sentences they are.
        originals: pairs of the old data that were written as they are.
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
        """Mean of the labels' tokens by those of their sources."""
        return self._ratios / max(self.labels, 1)

    def add(self, labels: Labels, ratios: NDArray[np.float64]) -> None:
        """Count labels that were written, with (H,) quotients of lengths."""
        self.labels += len(labels.rows)
        self.sentences += len(np.unique(labels.rows))
        self._scores += float(labels.scores.sum(dtype=np.float64))
        self._ratios += float(ratios.sum())


class Sources(NamedTuple):
    """Where the pairs of the new split come from.

    Attributes:
        reader: the old split.
        journals: the hypotheses for its sources.
        tokenizers: of both.
    """

    reader: ShardReader
    journals: Journals
    tokenizers: Tokenizers


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
    """Write the new split: labels by the number of their sentence, then original pairs.

    What is written depends on the arguments alone. The split is there as a whole or not at all.

    Args:
        sources: where pairs come from.
        filters: which hypotheses become labels.
        original: how often every original pair is written; a fraction is a random choice, the
            same each time.
        folder: of the new split.
        split: its name.
        shard_size: pairs in a shard.
        workers: processes that compute metrics.
        progress: told the number of hypotheses dealt with.

    Raises:
        UserError: there is no pair to write.
    """
    reader, journals, tokenizers = sources
    labels = journals.labels()
    summary = Summary(hypotheses=len(labels.rows))
    chosen = _choose_originals(len(reader), original)
    with ShardWriter(
        folder,
        split,
        vocab_hash=tokenizers.fingerprint,
        vocab_size=tokenizers.size,
        languages=reader.manifest.languages,
        shard_size=shard_size,
    ) as writer:
        for part, kept in _filtered(sources, labels, filters, summary, workers):
            if len(kept.rows):
                source, target = reader.gather(kept.rows)[0], journals.gather(kept)
                writer.add_block(source, target)
                summary.add(kept, (target.lengths - 1) / (source.lengths - 1))
            progress(part)
        for start in range(0, len(chosen), _CHUNK):
            writer.add_block(*reader.gather(chosen[start : start + _CHUNK]))
        summary.originals = len(chosen)
        if summary.labels + summary.originals == 0:
            raise UserError(_explain_nothing(summary))
    return summary


def _choose_originals(num_pairs: int, times: float) -> NDArray[np.int64]:
    """Numbers of the original pairs to write: all of them so often, and a part once more."""
    whole = int(times)
    part = round((times - whole) * num_pairs)
    drawn = np.sort(np.random.default_rng(_SEED).permutation(num_pairs)[:part])
    return np.concatenate([np.tile(np.arange(num_pairs), whole), drawn])


def _filtered(
    sources: Sources, labels: Labels, filters: Filters, summary: Summary, workers: int
) -> Iterator[tuple[int, Labels]]:
    """The labels that pass, chunk by chunk, each with the number of hypotheses looked at."""
    # cut between sentences, so that the best of one can be found
    first = np.flatnonzero(np.diff(labels.rows, prepend=-1))  # (N,) first hypothesis of each
    cuts = [*first[::_CHUNK].tolist(), len(labels.rows)]
    spans = list(zip(cuts, cuts[1:], strict=False))
    passing: Iterator[Labels] = (
        _pass_by_numbers(sources.reader, labels.take(slice(*span)), filters, summary)
        for span in spans
    )
    if filters.metrics:
        passing = _pass_by_metrics(sources, passing, filters, summary, workers)
    for (start, stop), kept in zip(spans, passing, strict=True):
        yield stop - start, kept


def _pass_by_numbers(
    reader: ShardReader, labels: Labels, filters: Filters, summary: Summary
) -> Labels:
    """Apply the filters that need no text."""
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
    """Apply the filters that compare the hypotheses with references."""
    reader, journals, tokenizers = sources
    target_lang = reader.manifest.languages[1]
    judge = Judge(tokenizers.target, Similarity(filters.metrics, target_lang))
    waiting: deque[Labels] = deque()  # workers are a few chunks ahead

    def texts() -> Iterator[tuple[TokenBlock, TokenBlock]]:
        for labels in chunks:
            waiting.append(labels)
            found = journals.gather(labels)
            yield found, reader.gather(labels.rows)[1] if len(labels.rows) else found

    for values in map_in_order(compare, judge, texts(), workers):
        labels = waiting.popleft()
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
    """Which of `count` hypotheses pass all tests; counts the others by the first that they fail."""
    passing = np.ones(count, bool)
    for name, passed in tests.items():
        summary.dropped[name] += int((passing & ~passed).sum())
        passing &= passed
    return passing


def _best_of_each(
    rows: NDArray[np.int64], values: NDArray[np.float64], passing: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Of the (H,) that pass, the one of the highest value for each sentence, the first if equal."""
    places = np.flatnonzero(passing)
    order = places[np.lexsort((places, -values[places], rows[places]))]
    best = np.zeros_like(passing)
    best[order[np.flatnonzero(np.diff(rows[order], prepend=-1))]] = True
    return best


def workers_for(num_sentences: int) -> int:
    """Processes that comparing so many sentences is worth."""
    cores = len(os.sched_getaffinity(0))
    return min(cores, 1 + num_sentences // (_CHUNK * _CHUNKS_PER_WORKER))


def copy_rest(data: Path, out: Path, split: str, tokenizer: Tokenizer) -> None:
    """Put into a new data folder what it takes from the old one: vocabulary and other splits."""
    files.remove_leftovers(out)
    save_tokenizer(tokenizer, out / VOCAB_FILE)
    suffix = ".manifest.json"
    for path in sorted(data.glob(f"*{suffix}")):
        other = path.name.removesuffix(suffix)
        if other == split:
            continue
        # the manifest last: where it is, the split is whole
        for name in [*Manifest.read(path).files, manifest_path(out, other).name]:
            _link(data / name, out / name)


def _link(old: Path, new: Path) -> None:
    """One more name for a file that nobody writes to again; a copy on another file system."""
    with files.replacing(new) as temporary:
        try:
            os.link(old.resolve(), temporary)
        except OSError:
            shutil.copyfile(old, temporary)


def _explain_nothing(summary: Summary) -> str:
    reasons = ", ".join(f"{count:,} by {name}" for name, count in summary.dropped.items() if count)
    return (
        f"not one of {summary.hypotheses:,} hypotheses is left (dropped: {reasons or 'none'}); "
        "call the same command with weaker filters: what was decoded is kept"
    )
