"""The arguments of commands that use a trained model, and of training; imports no torch.

So `--help` and mistakes on the command line are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ds_seq.commands.parser import CommandParser, Number, add_overrides, command_parser
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.options import described
from ds_seq.names import (
    CONSTRAINT_ORDERS,
    INT8,
    LONG_LINES,
    OUTPUT_FORMATS,
    PRECISIONS,
    UTILITIES,
)
from ds_seq.text.lines import STANDARD

BUFFER_SIZE = 512  # lines
MBR_SAMPLES = 32


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the options of `add_loading_arguments`."""
    parser.add_argument("run", help="run folder, or a file or folder written by `ds-seq export`")
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for loading trained models, and the one that a launcher adds."""
    add = parser.add_argument
    add("--checkpoint", default="best", help="best, last or a path (default: %(default)s)")
    add("--device", help="cpu, cuda:1, ... (default: a GPU if there is one)")
    add(
        "--dtype",
        choices=[*PRECISIONS, INT8],
        help="number format; int8 rounds the weights, on a CPU only (default: as trained on a GPU, "
        "fp32 on a CPU)",
    )
    add("--expert-parallel", type=int, default=1, metavar="N",
        help="spread the experts over N processes (default: all experts on each)")  # fmt: skip
    # The deepspeed launcher adds it before all other arguments; the environment has it, too.
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_search_arguments(
    parser: argparse.ArgumentParser, names: Sequence[str] = tuple(GenerationConfig.model_fields)
) -> None:
    """Add one option for each field of `GenerationConfig`, or for some of them."""
    search = parser.add_argument_group(
        "search (an option that is not given is as in the experiment, whose defaults are shown)"
    )
    for name in names:
        option = described(GenerationConfig, name)
        kind = "" if option.metavar.startswith("{") else f"{option.kind}; "
        help = f"{option.meaning} ({kind}default: {option.default})".replace("%", "%%")
        search.add_argument(f"--{name.replace('_', '-')}", metavar=option.metavar, help=help)


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
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


def add_steering_arguments(parser: argparse.ArgumentParser) -> None:
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


def generate_parser() -> CommandParser:
    """Return the parser of `ds-seq generate`."""
    parser = command_parser(
        "generate",
        "Translate text; with a reference, print BLEU and chrF with their signatures.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN",
        help="run folder, or a file or folder written by `ds-seq export`; several with the same "
        "vocabulary form an ensemble")  # fmt: skip
    add_loading_arguments(parser)
    add("--input", help="text, one sentence per line; - = standard input (default: data.raw.test)")
    add("--output", default=STANDARD,
        help="file for the translations; unfinished results are in OUTPUT.partial (default: "
        "standard output)")  # fmt: skip
    add("--resume", action="store_true", help="resume from the unfinished OUTPUT.partial, if any")
    add("--reference", help="raw reference text to score against")
    add("--n-best", type=int, default=1, metavar="N",
        help="write the N best translations of each line (default: %(default)s)")  # fmt: skip
    add("--format", choices=OUTPUT_FORMATS, default="text",
        help="text: the best translation; tsv: line number, score, translation; jsonl: one object "
        "per input line; fairseq: the S-, T-, H-, D- and P-lines of fairseq-generate "
        "(default: %(default)s)")  # fmt: skip
    add("--long-lines", choices=LONG_LINES, default="truncate",
        help="for input lines that are too long for the model: translate the start, leave the "
        "output line empty, or stop with an error (default: %(default)s)")  # fmt: skip
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
    add_result_arguments(parser)
    add_steering_arguments(parser)
    add_search_arguments(parser)
    return parser


def train_parser() -> CommandParser:
    """Return the parser of `ds-seq train`."""
    parser = command_parser(
        "train",
        "Train a model in one process, or in all processes that a launcher starts.",
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    add_overrides(parser, "replace single settings")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume from the run's newest checkpoint that is not damaged; start from scratch if "
        "there is none",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="with --resume, resume from this checkpoint: best, last, a name or a path; later ones "
        "are kept under other names",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run of this name"
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although this option, or one of this section, differs from the run so far in "
        "a way that is refused, such as model.num_heads; data.train: the shards; repeatable",
    )
    parser.add_argument(
        "--signal-exit-code",
        type=int,
        choices=range(256),
        default=0,
        metavar="N",
        help="exit code of a run that a signal has stopped before its end, after it has saved a "
        "checkpoint (default: 0); a job script knows from it that the run is not finished",
    )
    # the deepspeed launcher adds it before all other arguments; the environment has it, too
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def interactive_parser() -> CommandParser:
    """Return the parser of `ds-seq interactive`."""
    parser = command_parser(
        "interactive",
        "Translate line by line as text is typed or piped in. Shows the translations with "
        "their scores, the best first, and below each word of the best one the source words that "
        "it attends to.",
    )
    add_model_arguments(parser)
    parser.add_argument("--n-best", type=int, default=1, metavar="N",
        help="show the N best translations (default: %(default)s)")  # fmt: skip
    add_search_arguments(parser)
    return parser
