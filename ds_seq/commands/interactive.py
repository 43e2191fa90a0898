"""The command ``ds-seq interactive``: translate what is typed, and show how sure the model is.

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
from dataclasses import dataclass
from pathlib import Path

from ds_seq import distributed
from ds_seq.commands.options import (
    add_model_arguments,
    add_search_arguments,
    check_expert_parallel,
    chosen_device,
    search_settings,
)
from ds_seq.commands.parser import command_parser
from ds_seq.errors import UserError
from ds_seq.generation.alignment import Aligner
from ds_seq.generation.build import check_n_best
from ds_seq.generation.output import LineWriter
from ds_seq.generation.pipeline import Translator
from ds_seq.generation.translate import search_plan
from ds_seq.runs.decoding import run_translator
from ds_seq.runs.open import load_packed
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.lines import STANDARD, decode_line, write_lines

_PROMPT = "> "
_USUAL_WIDTH = 80
_NO_WORD = "-"
_INPUT = Path("standard input")


@dataclass(frozen=True)
class _Speaker:
    """Translates a line and says what it found.

    Attributes:
        translator: reads and searches.
        aligner: looks back at the source.
        width: columns of the screen.
    """

    translator: Translator
    aligner: Aligner
    width: int

    def __call__(self, text: str) -> list[str]:
        """The table for a line: scores and translations, then the words of the best one.

        Nothing for a line without text.

        Raises:
            UserError: a batch of this one sentence does not fit into memory.
        """
        own = self.translator
        reading = own.read([text])
        if not reading.lines[0]:
            return []
        (batch,) = search_plan(own.model, reading.plan, own.search, own.device)
        (found,) = self.aligner(batch)
        write = LineWriter(own.form, own.tokenizers, reading.lines, align=True)
        rows = []
        if found.cut:
            rows.append(
                f"(longer than the {own.limits.max_source_length - 1:,} pieces that the model "
                "takes: only its beginning is translated)"
            )
        for hypothesis in found.hypotheses:
            rows.append(f"{hypothesis.score:8.4f}  {write.text(0, hypothesis)}")
        return [*rows, "", *self._words(write, found.hypotheses[0])]

    def _words(self, write: LineWriter, best: Hypothesis) -> Iterator[str]:
        """The words of a translation, and under each what it looks at."""
        source = write.source[0].split()
        seen: dict[int, list[str]] = {}
        for origin, word in write.words(0, best):
            seen.setdefault(word, []).append(source[origin])
        words = write.text(0, best).split()
        columns = [
            (word, "+".join(seen.get(number, [_NO_WORD]))) for number, word in enumerate(words)
        ]
        yield from interlinear(columns, self.width)


def main(argv: Sequence[str]) -> int:
    """Run ``ds-seq interactive``."""
    args = _parser().parse_args(argv)
    speak = _load(args)
    terminal = sys.stdin.isatty()
    try:
        _talk(speak, terminal)
    except KeyboardInterrupt:
        if terminal:
            print(file=sys.stderr)  # what follows does not stand behind the prompt
        raise
    return 0


def _talk(speak: _Speaker, terminal: bool) -> None:
    """Answer every line of standard input, as it comes."""
    if terminal:
        print("Type a sentence and press Enter; Ctrl-D ends.", file=sys.stderr)
    for number, line in enumerate(_typed(terminal), 1):
        try:
            rows = speak(decode_line(line, _INPUT, number))
            if rows:
                write_lines(STANDARD, [*rows, ""])
        except UserError as error:
            if not terminal:
                raise
            print(f"ds-seq: error: {error}", file=sys.stderr)  # the next line may be better


def interlinear(columns: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Rows of words with rows of other words under them, each pair in one column.

    Args:
        columns: the two words of each column.
        width: rows longer than that many characters are continued below, after an empty row.
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


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "interactive",
        "Translate line by line what is typed or piped in. Shows the translations, the "
        "best first, with their scores, and under each word of the best one the words of the "
        "source that the model looks at.",
    )
    add_model_arguments(parser)
    parser.add_argument("--n-best", type=int, default=1, metavar="N",
        help="show the N best translations (default: %(default)s)")  # fmt: skip
    add_search_arguments(parser)
    return parser


def _load(args: argparse.Namespace) -> _Speaker:
    world = distributed.discover(os.environ)
    if world.size > 1:
        raise UserError(f"{world.size} processes cannot talk to one terminal; start a single one")
    check_expert_parallel(args.expert_parallel, world.size)
    device = chosen_device(args, world)
    run = load_packed(args.run, args.checkpoint, args.dtype, device)
    settings = search_settings(run.card, args)
    check_n_best(args.n_best, settings)
    translator = run_translator([run], settings, device, num_best=args.n_best)
    width = shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns
    aligner = Aligner([run.seq2seq], run.tokenizers, translator.limits, device)
    return _Speaker(translator, aligner, width)


def _typed(terminal: bool) -> Iterator[bytes]:
    """Lines of standard input, with a prompt before each on a terminal."""
    while True:
        if terminal:
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            if terminal:
                print(file=sys.stderr)  # Ctrl-D leaves the cursor behind the prompt
            return
        yield line.rstrip(b"\r\n")
