"""The arguments of `ds-seq perplexity`."""

from __future__ import annotations

from ds_seq.commands.arguments.shared import RUN_HELP, add_loading_arguments
from ds_seq.commands.parser import COUNT, CommandParser, Number, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq perplexity`."""
    parser = command_parser(
        "perplexity",
        "Measure how well a language model predicts text: perplexity per token and per word, and "
        "bits per byte, by which models of other vocabularies compare. Every token is scored once.",
    )
    add = parser.add_argument
    add("run", help=f"{RUN_HELP}; a language model")
    add("--input", required=True, nargs="+", metavar="FILE",
        help="text, a sentence or a paragraph per line; an empty line ends a document")  # fmt: skip
    add("--block-tokens", type=Number(2), metavar="N",
        help="number of tokens that the model reads at once (default: as in its "
        "training)")  # fmt: skip
    context = parser.add_mutually_exclusive_group()
    context.add_argument("--context-window", type=Number(0), metavar="N",
        help="number of these that are read again and not scored, so that a token has at least "
        "this context (default: 0)")  # fmt: skip
    context.add_argument("--stride", type=Number(1), metavar="N",
        help="the same as a number of tokens that are new in each block: block tokens minus "
        "context window")  # fmt: skip
    add("--max-tokens", type=COUNT, metavar="N",
        help="number of tokens of a batch (default: as in generation)")  # fmt: skip
    add("--json", action="store_true", help="print JSON")
    add_loading_arguments(parser)
    return parser
