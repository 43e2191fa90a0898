"""The arguments of `ds-seq generate`."""

from __future__ import annotations

import argparse

from ds_seq.commands.arguments.metrics import METRIC_NAMES, add_metrics
from ds_seq.commands.arguments.shared import (
    RUN_HELP,
    add_hang_seconds,
    add_loading_arguments,
    add_parts,
    add_search_arguments,
)
from ds_seq.commands.parser import CommandParser, Number, command_parser
from ds_seq.names import CONSTRAINT_ORDERS, DEFAULT_METRICS, LONG_LINES, OUTPUT_FORMATS, UTILITIES
from ds_seq.text.lines import STANDARD

BUFFER_SIZE = 512  # lines
MBR_SAMPLES = 32


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq generate`."""
    parser = command_parser(
        "generate",
        "Translate text; with a reference, print BLEU and chrF with their signatures.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN",
        help=f"{RUN_HELP}; several with the same vocabulary form an ensemble")  # fmt: skip
    add_loading_arguments(parser)
    add_parts(parser)
    add_hang_seconds(parser)
    add("--input", help="text, one sentence per line, or prompts of a language model; - = standard "
        "input (default: data.raw.test)")  # fmt: skip
    add("--output", default=STANDARD,
        help="file for the translations; unfinished results are in OUTPUT.partial (default: "
        "standard output)")  # fmt: skip
    add("--resume", action="store_true", help="resume from the unfinished OUTPUT.partial, if any")
    add("--target-lang", metavar="CODE",
        help="language of the translations, of a model that translates into several: each input "
        "line gets the tag of this language, as in training (default: the tags that stand in the "
        "text)")  # fmt: skip
    add("--target-langs", metavar="FILE",
        help="language of each translation: line n has the code for line n of the "
        "input")  # fmt: skip
    add("--reference", help="raw reference text to score against")
    add("--results", metavar="FILE",
        help="JSON file to which scores, speed and settings of this evaluation are "
        "appended")  # fmt: skip
    add_metrics(parser, METRIC_NAMES, " ".join(DEFAULT_METRICS), ", also in --results")
    add("--n-best", type=int, default=1, metavar="N",
        help="write the N best translations of each line (default: %(default)s)")  # fmt: skip
    add("--format", choices=OUTPUT_FORMATS, default="text",
        help="text: the best translation; tsv: line number, score, translation; jsonl: one object "
        "per input line; fairseq: the S-, T-, H-, D- and P-lines of fairseq-generate "
        "(default: %(default)s)")  # fmt: skip
    add("--long-lines", choices=LONG_LINES,
        help="for input lines that are too long for the model: translate the start, leave the "
        "output line empty, or stop with an error (default: truncate; error for the prompts of a "
        "language model)")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="number of batches that a process searches at the same time; on a CPU they share the "
        "threads (default: as many as there are threads, up to a limit; on a GPU 1)")  # fmt: skip
    add("--buffer-size", type=int, metavar="N",
        help="when reading standard input and writing standard output, translate N lines at a time "
        f"(default: {BUFFER_SIZE}; 1 on a terminal)")  # fmt: skip
    add(
        "--samples",
        type=Number(0),
        default=0,
        metavar="N",
        help="number of sample translations to show (default: %(default)s)",
    )
    _add_results(parser)
    _add_steering(parser)
    add_search_arguments(parser)
    return parser


def _add_results(parser: argparse.ArgumentParser) -> None:
    """Add options for alignments, unknown pieces and minimum Bayes risk."""
    add = parser.add_argument_group("processing of the hypotheses").add_argument
    add("--align", action="store_true",
        help="write which source words the words of a translation attend to, as pairs 0-0 1-2; "
        "for jsonl, tsv and fairseq (there for pieces)")  # fmt: skip
    add("--replace-unk", action="store_true",
        help="replace each unknown piece of the translation by the source word that it attends "
        "to")  # fmt: skip
    add("--align-layer", type=int, metavar="N",
        help="decoder layer, from 1, whose attention aligns (default: the last)")  # fmt: skip
    add("--mbr", choices=UTILITIES,
        help="draw samples and write the one most similar to the others (minimum Bayes risk); the "
        "cost grows with the square of their number")  # fmt: skip
    add("--samples-per-line", type=int, metavar="N",
        help=f"number of samples that --mbr draws (default: {MBR_SAMPLES})")  # fmt: skip


def _add_steering(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_steering` reads."""
    group = parser.add_argument_group("constraints on the translations")
    add = group.add_argument
    add("--prefix", metavar="FILE",
        help="translation n begins with line n of this file; an empty line is no "
        "constraint")  # fmt: skip
    add("--target-tag", metavar="TOKEN",
        help="every translation begins with this symbol of the vocabulary, before --prefix; it is "
        "not written")  # fmt: skip
    add("--constraints", metavar="FILE",
        help="translation n contains the tab-separated phrases in line n of this file")  # fmt: skip
    add("--constraint-order", choices=CONSTRAINT_ORDERS,
        help="given: the phrases of --constraints occur in the given order, without overlap "
        f"(default: {CONSTRAINT_ORDERS[0]})")  # fmt: skip
    add("--allowed", metavar="FILE", help="every translation is one of the lines of this file")
