"""Clean parallel text: normalize and filter it, and report dropped pairs by reason.

Text is processed in blocks, by one process or many, and what is finished is kept on disk until the
end: see `ds_seq.data.cleaning`. The output depends on the text and the options alone, not on who
has cleaned it and how often it was interrupted. Memory does not grow with the text, apart from one
bit for each pair and rule for duplicates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.cleaning.assembly import PLACE, assemble
from ds_seq.data.cleaning.blocks import Block, check_scores, read_corpora
from ds_seq.data.cleaning.journal import (
    Finished,
    JournalWriter,
    discard_work,
    is_worth_keeping,
    open_work,
)
from ds_seq.data.cleaning.options import (
    REASONS,
    CleanOptions,
    Corpus,
    ScoreFile,
    reason_to_drop,
)
from ds_seq.data.cleaning.report import CleanReport, CorpusReport
from ds_seq.data.parallel import cleaning_up, map_as_finished
from ds_seq.data.processes import LostProcess
from ds_seq.data.progress import Report, ignore
from ds_seq.errors import UserError
from ds_seq.text.lines import (
    LineBlock,
    PairPath,
    decode_lines,
    read_blocks,
    text_fingerprint,
)
from ds_seq.text.normalize import Normalizer
from ds_seq.text.scan import BLOCK_LINES, Scanner, facts_of

__all__ = [
    "REASONS",
    "CleanOptions",
    "CleanReport",
    "Corpus",
    "CorpusReport",
    "ScoreFile",
    "check_no_empty_line",
    "clean",
    "clean_corpora",
    "normalize_corpus",
    "reason_to_drop",
]

_FORMAT = 1
_NAME = "train"


def clean(
    inputs: Sequence[PairPath],
    output: PairPath,
    options: CleanOptions,
    workers: int = 1,
    progress: Report = ignore,
) -> CleanReport:
    """Write the pairs of one corpus that pass the filters; see `clean_corpora`."""
    return clean_corpora([Corpus(_NAME, inputs, options)], output, workers, progress)


def clean_corpora(
    corpora: Sequence[Corpus],
    output: PairPath,
    workers: int = 1,
    progress: Report = ignore,
    places: Path | None = None,
) -> CleanReport:
    """Write the pairs of all corpora that pass their filters, in order, as one text.

    The output does not depend on the number of workers, or of ranks under `mpirun`. It replaces an
    existing one only on success. After an interruption, finished blocks are in the folder
    `SOURCE.partial`; the next call, with as many processes as it likes, goes on from there unless
    text or options are others.

    Args:
        corpora: texts to read, one after the other. The report has the figures of each, so the
            first `kept` pairs of the output are those of the first corpus, and so on.
        output: the two UTF-8 files to write.
        workers: number of processes; ignored under `mpirun`.
        progress: called with the number of pairs of each finished block.
        places: file that gets the `PLACE` of each pair of the output, 12 bytes; None: none is
            written.

    Raises:
        UserError: a text or its scores cannot be read, everything was dropped, the output cannot be
            written, or a process has died.
    """
    folder = output.source.with_name(f"{output.source.name}.partial")
    for corpus in corpora:
        corpus.options.check()
        check_scores(corpus)
    with cleaning_up(), _work(folder):
        report = _clean(corpora, output, folder, workers, progress, places)
    return report


@contextmanager
def _work(folder: Path) -> Iterator[None]:
    """Lock the folder of unfinished work; remove it at the end if there is none."""
    lock = folder.with_name(f".{folder.name}.lock")
    with files.Lock(lock, folder, "wait for it, or give another output"):
        try:
            yield
        except LostProcess as error:
            raise UserError(
                f"{error}; finished blocks are kept, start the command again to continue"
            ) from error
        finally:
            if folder.exists() and not is_worth_keeping(folder):
                discard_work(folder)


def _clean(
    corpora: Sequence[Corpus],
    output: PairPath,
    folder: Path,
    workers: int,
    progress: Report,
    places: Path | None,
) -> CleanReport:
    finished, attempt = open_work(folder, _made_of(corpora))
    blocks = _left(_discarding(folder, read_corpora(corpora, BLOCK_LINES)), finished, progress)
    writer = JournalWriter(corpora, folder, attempt)
    for entry, examples in map_as_finished(
        JournalWriter.clean, writer, blocks, workers, prepare=JournalWriter.load
    ):
        finished.add(entry, examples)
        progress(entry.total)
    with _pair_writer(output, places) as write:
        report = assemble(folder, corpora, finished, write)
        if report.kept == 0:
            discard_work(folder)
            raise UserError(_explain_nothing(corpora, report))
    discard_work(folder)
    return report


def _discarding(folder: Path, blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks; if the text is wrong, nothing that was made of it is of any use."""
    try:
        yield from blocks
    except UserError:
        discard_work(folder)
        raise


def _left(blocks: Iterable[Block], finished: Finished, progress: Report) -> Iterator[Block]:
    """Yield the blocks that are not finished."""
    done = frozenset(finished.entries)
    for block in blocks:
        if block.number in done:
            progress(block.size)
        else:
            yield block


def _made_of(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Return what the clean text is made of: all that its bytes and its report depend on."""
    return {
        "format": _FORMAT,
        "block_lines": BLOCK_LINES,
        "corpora": [
            {
                "name": corpus.name,
                "inputs": [text_fingerprint(side) for path in corpus.inputs for side in path.files],
                "files": [repr(path) for path in corpus.inputs],
                "scores": [[text_fingerprint(score.path), score.column] for score in corpus.scores],
                "options": hashlib.sha256(repr(corpus.options).encode()).hexdigest(),
            }
            for corpus in corpora
        ],
    }


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
    with cleaning_up(), _pair_writer(output) as write:
        for block in read_blocks(inputs, BLOCK_LINES):
            sides = [[normalizer(text) for text in side] for side in decode_lines(block)]
            if len(sides) > 1:
                check_no_empty_line(block, *sides)
            text = ["".join(f"{line}\n" for line in side).encode() for side in sides]
            write(text[0], text[-1], np.empty(0, PLACE))
            total += len(sides[0])
            progress(len(sides[0]))
        if total == 0:
            raise UserError(f"there is no sentence pair in {_names(inputs)}")
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


@contextmanager
def _pair_writer(
    output: PairPath, places: Path | None = None
) -> Iterator[Callable[[bytes, bytes, NDArray[np.void]], None]]:
    """Yield a function that appends to two files or three, which appear if the block succeeds."""
    paths = [*output, *([] if places is None else [places])]
    scanners = [Scanner(BLOCK_LINES) for _ in output]
    with ExitStack() as stack:
        scanning = stack.enter_context(ThreadPoolExecutor(len(scanners)))
        temporary = [stack.enter_context(files.replacing(path)) for path in paths]
        opened = [stack.enter_context(open(path, "wb")) for path in temporary]

        def write(source: bytes, target: bytes, rows: NDArray[np.void]) -> None:
            sides = (source, target)[: output.num_sides]
            scans = [
                scanning.submit(scanner.update, content)
                for scanner, content in zip(scanners, sides, strict=True)
            ]
            for path, file, content in zip(paths, opened, (*sides, rows.tobytes()), strict=False):
                with files.writing(path):
                    file.write(content)
            for scan in scans:
                scan.result()

        yield write
    for path, scanner in zip(output, scanners, strict=True):
        with files.writing(path):
            files.remember(path, facts_of(scanner.finish()))


def _names(inputs: Iterable[PairPath]) -> str:
    return ", ".join(" and ".join(map(str, path.files)) for path in inputs) or "an empty list"


def _explain_nothing(corpora: Sequence[Corpus], report: CleanReport) -> str:
    names = _names(path for corpus in corpora for path in corpus.inputs)
    if report.total == 0:
        return f"there is no sentence pair in {names}"
    reasons = ", ".join(f"{name} {number:,}" for name, number in report.dropped.items() if number)
    return (
        f"cleaning dropped all {report.total:,} sentence pairs of {names} ({reasons}); "
        "check the files and the limits of data.clean"
    )
