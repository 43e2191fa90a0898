"""The arguments of `ds-seq score`."""

from __future__ import annotations

from ds_seq.commands.arguments.metrics import METRIC_NAMES, add_metrics
from ds_seq.commands.parser import CommandParser, Number, command_parser
from ds_seq.names import DEFAULT_METRICS, PAIRED_TESTS, RESAMPLING_SEED

COMET_MODEL = "Unbabel/wmt22-comet-da"


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq score`."""
    parser = command_parser(
        "score",
        "Score translations against raw references, as sacreBLEU does. All texts are "
        "UTF-8 with one sentence per line; - = standard input.",
        usage="ds-seq score HYP REF [options]\n"
        "       ds-seq score HYP --reference R [R ...] [options]\n"
        "       ds-seq score REF --systems A B [...] [options]",
        abbreviations=True,
        reads_experiments=False,
    )
    add = parser.add_argument
    add("text", nargs="*", help="HYP: detokenized translation; REF: raw reference text")
    add("--reference", nargs="+", metavar="R", help="one or more raw reference texts")
    add("--systems", nargs="+", metavar="A", help="translations of several systems")
    add("--target-lang", default="", metavar="LANG",
        help="language code; decides how BLEU, TER and ROUGE split text that has no spaces between "
        "words, such as zh, ja and th; required by rouge")  # fmt: skip
    add_metrics(parser, (*METRIC_NAMES, "comet"), " ".join(DEFAULT_METRICS))
    add("--tokenized", "--tokenised", action="store_true",
        help="the texts are already tokenized: BLEU that is not comparable to others")  # fmt: skip
    add("--paired", nargs="?", const=PAIRED_TESTS[0], choices=PAIRED_TESTS,
        help="p-values of the differences to the first system (default: bootstrap)")  # fmt: skip
    add("--samples", type=Number(2), metavar="N",
        help="number of resamples (default: 1000; paired randomization: 10000)")  # fmt: skip
    add(
        "--seed",
        type=Number(1, 2**32 - 1),
        metavar="N",
        help=f"seed of the resampling (default: {RESAMPLING_SEED})",
    )
    add("--json", action="store_true", help="print all results as JSON")
    add("--source", metavar="FILE", help="source text, for comet")
    add(
        "--comet-model",
        default=COMET_MODEL,
        metavar="NAME",
        help="COMET model (default: %(default)s)",
    )
    return parser
