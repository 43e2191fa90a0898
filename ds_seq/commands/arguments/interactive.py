"""The arguments of `ds-seq interactive`."""

from __future__ import annotations

from ds_seq.commands.arguments.shared import add_model_arguments, add_parts, add_search_arguments
from ds_seq.commands.parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq interactive`."""
    parser = command_parser(
        "interactive",
        "Translate line by line as text is typed or piped in. Shows the translations with "
        "their scores, the best first, and below each word of the best one the source words that "
        "it attends to.",
    )
    add_model_arguments(parser)
    add_parts(parser)
    parser.add_argument("--n-best", type=int, default=1, metavar="N",
        help="show the N best translations (default: %(default)s)")  # fmt: skip
    parser.add_argument("--target-lang", metavar="CODE",
        help="language of the translations, of a model that translates into several; see "
        "`ds-seq generate --help`")  # fmt: skip
    add_search_arguments(parser)
    return parser
