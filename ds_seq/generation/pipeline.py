"""From text to what is written for it: a whole text on many ranks, or a stream on one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ds_seq.data.progress import Progress, ignore
from ds_seq.distributed import shared_errors
from ds_seq.generation.output import LineWriter, OutputFormat
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
from ds_seq.search.beam_search import BeamSearch, Decodable
from ds_seq.text.lines import STANDARD, read_buffers, write_lines
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

ResultStep = Callable[[list[LineResult]], list[LineResult]]
"""Adds something to what was found for the lines of a batch, or chooses among it."""


@dataclass(frozen=True)
class Translator:
    """All that it takes to make output of text.

    Attributes:
        model: in evaluation mode.
        tokenizers: make ids of text, and text of ids.
        search: how to search.
        limits: size of batches and of sentences.
        long_lines: what becomes of lines that are too long.
        form: of the output.
        device: where the model is.
        workers: how many batches are searched at a time; see `ds_seq.generation.workers`.
        steps: what is done with each batch of what was found, one after the other.
        align: whether alignments are written; one of the steps makes them.
        replace_unk: see `LineWriter`; likewise.
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

    def read(self, text: Sequence[str], first: int = 0) -> Reading:
        """Prepare a text, or a part of one.

        Args:
            text: raw lines.
            first: number of the first of them in the whole input, from 0.

        Raises:
            UserError: a line is too long, and that is an error.
        """
        lines = _normalized(self.tokenizers.source, text)
        plan = plan_lines(self.tokenizers.source, lines, self.limits, self.long_lines, first)
        return Reading(lines, plan, first)

    def translate(
        self,
        reading: Reading,
        reference: Sequence[str] | None = None,
        plan: SearchPlan | None = None,
        share: Share | None = None,
    ) -> Iterator[list[Line]]:
        """Translate batch by batch.

        Args:
            reading: the text.
            reference: its raw translations, where there are any; for formats that show them.
            plan: part of the reading's plan; default: all.
            share: of this process.
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
        )
        any_rank = None if share is None else share.any_rank
        plan = reading.plan if plan is None else plan
        for batch in search_plan(
            self.model, plan, self.search, self.device, any_rank, self.workers
        ):
            yield self._answer(batch, write)

    def _answer(self, batch: list[LineResult], write: LineWriter) -> list[Line]:
        """What becomes of the lines of a batch."""
        for step in self.steps:
            batch = step(batch)
        return [
            Line(
                found.line,
                write.text(found.line, found.hypotheses[0]),
                write(found.line, found.hypotheses),
                found.cut,
                found.hypotheses[0].score == -math.inf,
            )
            for found in batch
        ]


def _normalized(tokenizer: Tokenizer, lines: Sequence[str]) -> list[str]:
    return [tokenizer.normalize(line) for line in lines]


class Reading(NamedTuple):
    """A text as the model reads it."""

    lines: list[str]
    """Normalized."""
    plan: SearchPlan
    """What is to be searched."""
    first: int
    """Number of the first line in the whole input, from 0."""


def translate_share(
    translator: Translator,
    reading: Reading,
    reference: Sequence[str] | None,
    share: Share,
    done: Sequence[int],
    store: Store,
) -> list[Line] | None:
    """Translate a process's share of a text, with a progress bar on the first one. A collective.

    Args:
        translator: the same on every rank but for the device.
        reading: the whole text.
        reference: see `Translator.translate`.
        share: of this process.
        done: numbers of the lines of which the store knows already.
        store: where the lines go.

    Returns:
        All lines in their order on rank 0, None elsewhere.
    """
    plan = reading.plan.part(share, done)
    title = "translate" if share.world_size == 1 else f"translate (1 of {share.world_size})"
    bar = Progress(title, plan.num_lines, "sentences") if share.rank == 0 else nullcontext(ignore)
    # Under a collective nobody can hear of an error: the others are in the middle of a forward.
    errors = shared_errors() if share.any_rank is None else nullcontext()
    with errors, bar as progress:
        for lines in translator.translate(reading, reference, plan, share):
            store.add(lines)
            progress(len(lines))
    gathered = store.gather()
    return None if gathered is None else sorted(gathered)


class Streamed(NamedTuple):
    """What `translate_stream` has done."""

    num_lines: int
    remarkable: list[Line]
    """Those of which something is to be said: too long, or impossible to translate."""
    seconds: float
    """Without those spent waiting for the text."""


def translate_stream(translator: Translator, size: int) -> Streamed:
    """Translate standard input to standard output, `size` lines at a time."""
    count, seconds = 0, 0.0
    remarkable: list[Line] = []
    for buffer in read_buffers(size):
        started = time.monotonic()
        reading = translator.read(buffer, first=count)
        lines = sorted(line for batch in translator.translate(reading) for line in batch)
        write_lines(STANDARD, [line.output for line in lines])
        remarkable += [line for line in lines if line.cut or line.impossible]
        count += len(buffer)
        seconds += time.monotonic() - started
    return Streamed(count, remarkable, seconds)
