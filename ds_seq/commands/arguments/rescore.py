"""The arguments of `ds-seq rescore`."""

from __future__ import annotations

from ds_seq.commands.arguments.shared import (
    add_hang_seconds,
    add_model_arguments,
    add_parts,
    add_search_arguments,
)
from ds_seq.commands.parser import CommandParser, Number, command_parser
from ds_seq.names import OutputFormat
from ds_seq.text.lines import STANDARD

_FORMATS: tuple[OutputFormat, ...] = ("tsv", "jsonl", "text")
_OPTIONS = (
    "length_penalty",
    "length_penalty_form",
    "unk_penalty",
    "temperature",
    "max_tokens",
    "max_sentences",
)


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq rescore`."""
    parser = command_parser(
        "rescore",
        "Score given translations with a model, as its beam search would: "
        "log-probability divided by the length penalty, and the log-probability of each piece "
        "into which the vocabulary splits the text.",
    )
    add_model_arguments(parser)
    add_parts(parser)
    add_hang_seconds(parser)
    add = parser.add_argument
    add("--source", required=True, help="text, one sentence per line; - = standard input")
    add("--hypotheses", required=True, metavar="FILE",
        help="its translations; - = standard input")  # fmt: skip
    add("--hypotheses-format", choices=("text", "tsv"), default="text",
        help="text: one line per source line; tsv: any number per source line, as `ds-seq generate "
        "--format tsv` writes them: line number, any text, translation "
        "(default: %(default)s)")  # fmt: skip
    add("--output", default=STANDARD, help="file for the scores (default: standard output)")
    add("--format", choices=_FORMATS, default="tsv",
        help="tsv: line number, score, translation; jsonl: one object per line, with a score for "
        "each piece and for the end; text: the best translation of each line "
        "(default: %(default)s)")  # fmt: skip
    channel = parser.add_argument_group("noisy channel (Yee et al. 2019)")
    channel.add_argument("--channel", metavar="RUN", help="model that translates back; adds the "
        "weighted score of the source given the translation")  # fmt: skip
    factor = Number(0, is_whole=False)
    channel.add_argument("--channel-weight", type=factor, default=1.0, metavar="A",
        help="factor of its score (default: %(default)s)")  # fmt: skip
    channel.add_argument("--lm", dest="lm_run", metavar="RUN", help="language model of the target, "
        "with any vocabulary; adds the weighted score of the translation")  # fmt: skip
    channel.add_argument("--lm-weight", dest="lm_factor", type=factor, default=0.3, metavar="B",
        help="factor of its score (default: %(default)s)")  # fmt: skip
    channel.add_argument("--tune", metavar="FILE", help="reference translations of the source: "
        "print the weights with which the best translations have the highest BLEU, and use "
        "them")  # fmt: skip
    add_search_arguments(parser, _OPTIONS)
    return parser
