"""The arguments of `ds-seq show-batch`."""

from __future__ import annotations

from ds_seq.commands.parser import COUNT, CommandParser, Number, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq show-batch`."""
    parser = command_parser(
        "show-batch",
        "Print training batches as the model reads them: with tags, drawn subwords and all other "
        "changes. Sides are printed as pieces, as text and as ids.",
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    add_overrides(parser)
    parser.add_argument(
        "--batch", type=COUNT, default=1, metavar="N",
        help="number of the batch in the order of training on one rank (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=COUNT, default=1, metavar="N", help="number of batches (default: 1)"
    )
    parser.add_argument(
        "--most", type=Number(1), default=10, metavar="N",
        help="most sentences to print of each batch (default: %(default)s)",
    )  # fmt: skip
    return parser
