"""The command `ds-seq interactive`: translate lines as they are typed, and show scores.

ds-seq interactive runs/x
ds-seq interactive runs/x --n-best 5 --beam 10
cat text.de | ds-seq interactive runs/x
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ds_seq import distributed
from ds_seq.commands.arguments.interactive import build_parser
from ds_seq.commands.options import (
    check_expert_parallel,
    chosen_device,
    load_chosen,
    search_settings,
)
from ds_seq.commands.target_languages import TargetLanguages
from ds_seq.errors import UserError
from ds_seq.generation.alignment import Aligner
from ds_seq.generation.build import check_n_best
from ds_seq.generation.output import LineWriter
from ds_seq.generation.pipeline import Translator
from ds_seq.generation.translate import search_plan
from ds_seq.runs.decoding import run_translator
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.lines import STANDARD, decode_line, read_buffers, write_lines
from ds_seq.text.tags import untagged_message

_PROMPT = "> "
_USUAL_WIDTH = 80
_NO_WORD = "-"
_INPUT = Path("standard input")


@dataclass(frozen=True)
class _LineTranslator:
    """Translates a line and formats the result.

    Attributes:
        translator: reads and translates.
        aligner: aligns translations with the source; None for a model without attention to it.
        width: width of the screen in columns.
    """

    translator: Translator
    aligner: Aligner | None
    width: int

    def __call__(self, text: str) -> list[str]:
        """Return the scores and translations of a line, then the best one's aligned words.

        The result is empty for a line without text.

        Raises:
            UserError: a batch of this single sentence does not fit into memory.
        """
        translator = self.translator
        reading = translator.read([text])
        if not reading.lines[0]:
            return []
        plan, search = reading.plan, translator.search
        (batch,) = search_plan(translator.model, plan, search, translator.device)
        (result,) = batch if self.aligner is None else self.aligner(batch)
        aligns = self.aligner is not None
        write = LineWriter(translator.form, translator.tokenizers, reading.lines, align=aligns)
        rows = []
        if result.cut:
            rows.append(
                f"(longer than the {translator.limits.max_source_length - 1:,} pieces that the "
                "model takes: only the beginning is translated)"
            )
        if reading.untagged:
            rows.append(f"({untagged_message(translator.tags or {}, 'begins')})")
        for hypothesis in result.hypotheses:
            rows.append(f"{hypothesis.score:8.4f}  {write.text(0, hypothesis)}")
        return [*rows, "", *self._words(write, result.hypotheses[0])] if aligns else rows

    def _words(self, write: LineWriter, best: Hypothesis) -> Iterator[str]:
        """Yield rows with the words of a translation above the source words they attend to."""
        source = write.source[0].split()
        origins: dict[int, list[str]] = {}
        for origin, word in write.words(0, best):
            origins.setdefault(word, []).append(source[origin])
        words = write.text(0, best).split()
        columns = [
            (word, "+".join(origins.get(number, [_NO_WORD]))) for number, word in enumerate(words)
        ]
        yield from interlinear(columns, self.width)


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq interactive`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    translate = _load(args)
    terminal = sys.stdin.isatty()
    try:
        _translate_input(translate, terminal)
    except KeyboardInterrupt:
        if terminal:
            print(file=sys.stderr)  # start a new line after the prompt
        raise
    return 0


def _translate_input(translate: _LineTranslator, terminal: bool) -> None:
    """Translate every line of standard input as it arrives."""
    if not terminal:
        for lines in read_buffers(1):
            _show(translate, lines[0])
        return
    print("Type a sentence and press Enter; Ctrl-D ends.", file=sys.stderr)
    for number, line in enumerate(_typed(), 1):
        try:
            _show(translate, decode_line(line, _INPUT, number))
        except UserError as error:
            print(f"ds-seq: error: {error}", file=sys.stderr)  # continue with the next line


def _show(translate: _LineTranslator, line: str) -> None:
    rows = translate(line)
    if rows:
        write_lines(STANDARD, [*rows, ""])


def interlinear(columns: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield rows of words with rows of other words below them, each pair in one column.

    Args:
        columns: upper and lower word of each column.
        width: maximum length of a row in characters; more rows follow after an empty one.
    """
    while columns:
        used, count = 0, 0
        for above, below in columns:
            used += max(len(above), len(below)) + (2 if count else 0)
            if used > width and count:
                break
            count += 1
        for row in zip(*columns[:count], strict=True):
            sizes = [max(map(len, column)) for column in columns[:count]]
            yield "  ".join(
                word.ljust(size) for word, size in zip(row, sizes, strict=True)
            ).rstrip()
        columns = columns[count:]
        if columns:
            yield ""


def _load(args: argparse.Namespace) -> _LineTranslator:
    world = distributed.discover(os.environ)
    if world.size > 1:
        raise UserError(f"{world.size} processes cannot share one terminal; start a single one")
    check_expert_parallel(args.expert_parallel, world.size)
    device = chosen_device(args, world)
    run = load_chosen(args.run, args, device)
    settings = search_settings(run.card, args)
    check_n_best(args.n_best, settings)
    translator = run_translator([run], settings, device, num_best=args.n_best)
    translator = replace(translator, tagged=TargetLanguages(args.target_lang).tagger(run.card))
    width = shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns
    aligner = None
    if not run.card.reads_prompts:
        aligner = Aligner([run.seq2seq], run.tokenizers, translator.limits, device)
    aligns = aligner is not None and aligner.can_align()
    return _LineTranslator(translator, aligner if aligns else None, width)


def _typed() -> Iterator[bytes]:
    """Yield the lines that are typed on a terminal, with a prompt before each."""
    while True:
        print(_PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            print(file=sys.stderr)  # Ctrl-D leaves the cursor after the prompt
            return
        yield line.rstrip(b"\r\n")
