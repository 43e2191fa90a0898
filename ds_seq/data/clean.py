"""Clean parallel text: normalize and filter it, and count dropped pairs by reason.

Text is processed in blocks. Only the hashes of earlier pairs are kept in memory, 8 bytes each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.parallel import cleaning_up, map_in_order
from ds_seq.data.progress import Report, ignore
from ds_seq.errors import UserError
from ds_seq.text.lines import LineBlock, PairPath, decode_lines, read_blocks
from ds_seq.text.normalize import Normalizer
from ds_seq.text.scripts import count_words

BLOCK_LINES = 20_000
REASONS = ("invalid_utf8", "empty", "too_short", "too_long", "ratio", "identical", "duplicate")


@dataclass(frozen=True)
class CleanOptions:
    """Normalization and filters of cleaning.

    Attributes:
        normalizer: applied to the text first.
        min_words: minimum number of words of each side.
        max_words: maximum number of words of each side.
        max_ratio: maximum ratio of the word counts of the two sides.
        drop_identical: whether to drop pairs whose sides are identical.
        drop_duplicates: whether to keep only the first of identical pairs.
    """

    normalizer: Normalizer
    min_words: int
    max_words: int
    max_ratio: float
    drop_identical: bool
    drop_duplicates: bool


@dataclass
class CleanReport:
    """Total number of pairs, and the number of dropped pairs for each of `REASONS`."""

    total: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    @property
    def kept(self) -> int:
        """Number of pairs that were written."""
        return self.total - sum(self.dropped.values())


def reason_to_drop(source: str, target: str, options: CleanOptions) -> str | None:
    """Return which of `REASONS` applies to a single normalized pair, or None."""
    if not source or not target:
        return "empty"
    shorter, longer = sorted((count_words(source), count_words(target)))
    if shorter < options.min_words:
        return "too_short"
    if longer > options.max_words:
        return "too_long"
    if longer > options.max_ratio * shorter:
        return "ratio"
    if options.drop_identical and source == target:
        return "identical"
    return None


def clean(
    inputs: Sequence[PairPath],
    output: PairPath,
    options: CleanOptions,
    workers: int = 1,
    progress: Report = ignore,
) -> CleanReport:
    """Write the pairs of the inputs that pass the filters, in order, as one text.

    The output does not depend on the number of workers. It replaces an existing one only on
    success.

    Args:
        inputs: texts to read, one after the other.
        output: the two UTF-8 files to write.
        options: normalization and filters.
        workers: number of processes.
        progress: called with the number of pairs of each finished block.
    """
    report = CleanReport()
    hashes = _HashSet()
    with _pair_writer(output) as write:
        blocks = read_blocks(inputs, BLOCK_LINES)
        for result in map_in_order(_clean_block, options, blocks, workers):
            pairs = result.pairs
            if options.drop_duplicates:
                new = hashes.add(result.hashes)
                report.dropped["duplicate"] += len(pairs) - int(new.sum())
                pairs = [pairs[i] for i in np.flatnonzero(new)]
            for reason, number in result.dropped.items():
                report.dropped[reason] += number
            report.total += result.total
            write(pairs)
            progress(result.total)
        if report.kept == 0:
            raise UserError(_explain_nothing(inputs, report))
    return report


def normalize_corpus(
    inputs: Sequence[PairPath],
    output: PairPath,
    normalizer: Normalizer,
    progress: Report = ignore,
) -> int:
    """Normalize all pairs of the inputs, for validation and test text.

    Line n of the output belongs to line n of the inputs: nothing is dropped, and an unusable line
    raises an error with its file and number.

    Returns:
        The number of pairs.
    """
    total = 0
    with _pair_writer(output) as write:
        for block in read_blocks(inputs, BLOCK_LINES):
            source, target = ([normalizer(text) for text in side] for side in decode_lines(block))
            check_no_empty_line(block, source, target)
            write(list(zip(source, target, strict=True)))
            total += len(source)
            progress(len(source))
        if total == 0:
            raise UserError(_explain_nothing(inputs, CleanReport()))
    return total


def check_no_empty_line(block: LineBlock, source: Sequence[str], target: Sequence[str]) -> None:
    """Check that no line of a block is empty.

    Raises:
        UserError: a line is empty; names its file and number.
    """
    for path, lines in zip(block.path, (source, target), strict=True):
        for number, text in enumerate(lines, block.first_line):
            if not text:
                raise UserError(
                    f"{path}: {block.path.form.unit} {number} is empty; remove it from both sides "
                    "(prepare_data/clean.py does)"
                )


class _Cleaned(NamedTuple):
    """Result of a block: the pairs that pass, their hashes, and the reasons of dropped ones."""

    pairs: list[tuple[str, str]]
    hashes: NDArray[np.uint64]
    dropped: Counter[str]
    total: int


def _clean_block(options: CleanOptions, block: LineBlock) -> _Cleaned:
    pairs: list[tuple[str, str]] = []
    dropped: Counter[str] = Counter()
    for source_line, target_line in zip(block.source, block.target, strict=True):
        try:
            source = options.normalizer(source_line.decode("utf-8"))
            target = options.normalizer(target_line.decode("utf-8"))
        except UnicodeDecodeError:
            dropped["invalid_utf8"] += 1
            continue
        if reason := reason_to_drop(source, target, options):
            dropped[reason] += 1
        else:
            pairs.append((source, target))
    digests = (blake2b("\n".join(pair).encode(), digest_size=8).digest() for pair in pairs)
    hashes = np.frombuffer(b"".join(digests), np.uint64)
    return _Cleaned(pairs, hashes, dropped, len(block.source))


class _HashSet:
    """A set of 64-bit hashes in sorted arrays.

    A Python set would take ten times the memory. Arrays are merged when the next one is at least as
    long, so the number of arrays, and of moves per hash, is logarithmic. Among corpora of 100
    million different pairs, about one in 4,000 loses a pair to a collision.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Add hashes (N,); return a mask (N,), True for new ones."""
        run, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(run), bool)
        for older in self._runs:
            places = np.minimum(np.searchsorted(older, run), len(older) - 1)
            known |= older[places] == run
        new = np.zeros(len(hashes), bool)
        new[first[~known]] = True
        run = run[~known]
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        if len(run):
            self._runs.append(run)
        return new


@contextmanager
def _pair_writer(output: PairPath) -> Iterator[Callable[[Sequence[tuple[str, str]]], None]]:
    """Yield a function that appends pairs to two files, which appear if the block succeeds."""
    with (
        cleaning_up(),
        files.replacing(output.source) as source,
        files.replacing(output.target) as target,
        open(source, "wb") as source_file,
        open(target, "wb") as target_file,
    ):

        def write(pairs: Sequence[tuple[str, str]]) -> None:
            for side, file in enumerate((source_file, target_file)):
                with files.writing(output[side]):
                    file.write("".join(f"{pair[side]}\n" for pair in pairs).encode())

        yield write


def _explain_nothing(inputs: Sequence[PairPath], report: CleanReport) -> str:
    names = ", ".join(" and ".join(map(str, path.files)) for path in inputs) or "an empty list"
    if report.total == 0:
        return f"there is no sentence pair in {names}"
    reasons = ", ".join(f"{name} {number:,}" for name, number in report.dropped.items() if number)
    return (
        f"cleaning dropped all {report.total:,} sentence pairs of {names} ({reasons}); "
        "check the files and the limits of data.clean"
    )
