"""Translate text to written output: a whole text on many ranks, or a stream on one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ds_seq.activity import finished, phase
from ds_seq.data.progress import Progress, ignore
from ds_seq.distributed import shared_errors
from ds_seq.generation.output import LineWriter, Spelling
from ds_seq.generation.partial import Line, Store
from ds_seq.generation.translate import (
    BatchLimits,
    LineResult,
    LongLines,
    SearchPlan,
    Share,
    plan_lines,
    search_plan,
)
from ds_seq.names import OutputFormat
from ds_seq.search.beam_search import BeamSearch, Decodable
from ds_seq.text.lines import STANDARD, read_buffers, write_lines
from ds_seq.text.tags import untagged
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

ResultStep = Callable[[list[LineResult]], list[LineResult]]
"""Adds information to the results of a batch, or selects among their hypotheses."""


@dataclass(frozen=True)
class Translator:
    """Translates text to output lines.

    Attributes:
        model: the model, in evaluation mode.
        tokenizers: tokenizers of source and target.
        search: the search.
        limits: size of batches and of sentences.
        long_lines: treatment of lines that are too long.
        form: output format.
        device: device of the model.
        workers: number of batches searched in parallel; see `ds_seq.generation.workers`.
        steps: steps applied in turn to the results of each batch.
        align: whether to write alignments; requires a step that makes them.
        replace_unk: see `LineWriter`; requires a step that makes alignments.
        spelling: see `LineWriter`.
        tagged: adds a tag to the start of lines with text, given the number of the first of them.
        tags: language tags of the vocabulary, by id, one of which should begin every source; None
            if no source is to be reported, see `ds_seq.text.tags.untagged`.
    """

    model: Decodable[Any, Any]
    tokenizers: Tokenizers
    search: BeamSearch
    limits: BatchLimits
    long_lines: LongLines
    form: OutputFormat
    device: torch.device
    workers: int = 1
    steps: tuple[ResultStep, ...] = ()
    align: bool = False
    replace_unk: bool = False
    spelling: Spelling | None = None
    tagged: Callable[[Sequence[str], int], list[str]] | None = None
    tags: Mapping[int, str] | None = None

    def read(self, text: Sequence[str], first: int = 0) -> Reading:
        """Encode a text, or a part of one, and plan its batches.

        Args:
            text: raw lines.
            first: number of the first of these lines in the whole input, from 0.

        Raises:
            UserError: a line is too long and `long_lines` makes that an error.
        """
        lines = _normalized(self.tokenizers.source, text)
        if self.tagged is not None:
            lines = self.tagged(lines, first)
        plan = plan_lines(self.tokenizers.source, lines, self.limits, self.long_lines, first)
        without_tag = [] if self.tags is None else untagged(lines, self.tags)
        return Reading(lines, plan, first, [first + number for number in without_tag])

    def translate(
        self,
        reading: Reading,
        reference: Sequence[str] | None = None,
        plan: SearchPlan | None = None,
        share: Share | None = None,
    ) -> Iterator[list[Line]]:
        """Translate batch by batch.

        Args:
            reading: the encoded text.
            reference: raw reference translations, for formats that show them.
            plan: part of the plan of `reading`; default all of it.
            share: this process's part of the work.

        Yields:
            The translated lines of a batch.
        """
        if reference is not None:
            reference = _normalized(self.tokenizers.target, reference)
        write = LineWriter(
            self.form,
            self.tokenizers,
            reading.lines,
            reference,
            reading.first,
            self.align,
            self.replace_unk,
            self.spelling,
        )
        any_rank = None if share is None else share.any_rank
        plan = reading.plan if plan is None else plan
        for batch in search_plan(
            self.model, plan, self.search, self.device, any_rank, self.workers
        ):
            yield self._answer(batch, write)

    def _answer(self, batch: list[LineResult], write: LineWriter) -> list[Line]:
        """Apply the steps to the results of a batch and format its lines."""
        for step in self.steps:
            batch = step(batch)
        return [
            Line(
                result.line,
                write.text(result.line, result.hypotheses[0]),
                write(result.line, result.hypotheses),
                result.cut,
                result.hypotheses[0].score == -math.inf,
            )
            for result in batch
        ]


def _normalized(tokenizer: Tokenizer, lines: Sequence[str]) -> list[str]:
    return [tokenizer.normalize(line) for line in lines]


class Reading(NamedTuple):
    """An encoded text."""

    lines: list[str]
    """Normalized lines."""
    plan: SearchPlan
    """Batches to search."""
    first: int
    """Number of the first line in the whole input, from 0."""
    untagged: list[int]
    """Numbers, from 0 in the whole input, of the lines without a known language tag."""


def translate_share(
    translator: Translator,
    reading: Reading,
    reference: Sequence[str] | None,
    share: Share,
    done: Sequence[int],
    store: Store,
) -> list[Line] | None:
    """Translate this process's share of a text, with a progress bar on rank 0. A collective.

    Args:
        translator: the translator, the same on every rank except for the device.
        reading: the whole encoded text.
        reference: see `Translator.translate`.
        share: this process's part of the work.
        done: numbers of the lines that are already in the store.
        store: storage of finished lines; closed at the end, also after an error.

    Returns:
        All lines in the order of the input on rank 0, None on other ranks.
    """
    plan = reading.plan.part(share, done)
    title = "translate" if share.world_size == 1 else f"translate (1 of {share.world_size})"
    bar = Progress(title, plan.num_lines, "sentences") if share.rank == 0 else nullcontext(ignore)
    # In a collective search, errors cannot be shared: other ranks are in the middle of a forward.
    errors = shared_errors() if share.any_rank is None else nullcontext()
    with closing(store):
        with errors, bar as progress:
            batches = translator.translate(reading, reference, plan, share)
            for number, lines in enumerate(batches, 1):
                store.add(lines)
                finished("translation", number)
                progress(len(lines))
        with phase("gathering the translations", may_take_long=True):
            gathered = store.gather()
        return None if gathered is None else sorted(gathered)


class Streamed(NamedTuple):
    """Statistics of `translate_stream`."""

    num_lines: int
    """Number of translated lines."""
    remarkable: list[Line]
    """Lines to be reported: too long, or impossible to translate."""
    untagged: list[int]
    """See `Reading.untagged`."""
    seconds: float
    """Time spent, excluding the time spent waiting for input."""


def translate_stream(translator: Translator, size: int) -> Streamed:
    """Translate standard input to standard output, up to `size` lines at a time."""
    count, seconds = 0, 0.0
    remarkable: list[Line] = []
    without_tag: list[int] = []
    for buffer in read_buffers(size):
        started = time.monotonic()
        reading = translator.read(buffer, first=count)
        lines = sorted(line for batch in translator.translate(reading) for line in batch)
        write_lines(STANDARD, [line.output for line in lines])
        remarkable += [line for line in lines if line.cut or line.impossible]
        without_tag += reading.untagged
        count += len(buffer)
        seconds += time.monotonic() - started
    return Streamed(count, remarkable, without_tag, seconds)
