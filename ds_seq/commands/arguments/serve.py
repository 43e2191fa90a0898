"""The arguments of `ds-seq serve`."""

from __future__ import annotations

from ds_seq.commands.arguments.address import add_address_arguments
from ds_seq.commands.arguments.shared import (
    RUN_HELP,
    add_loading_arguments,
    add_search_arguments,
)
from ds_seq.commands.parser import COUNT, CommandParser, Number, command_parser

_SECONDS = Number(0, is_whole=False)


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq serve`."""
    parser = command_parser(
        "serve",
        "Answer requests over HTTP with trained models, and serve a page to look at translations. "
        "SIGTERM ends it after all requests that have arrived are answered.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"[NAME=]RUN[@CHECKPOINT]: {RUN_HELP}, and its name in requests; several with a comma "
        "between them form an ensemble",
    )
    add_loading_arguments(parser)
    server = parser.add_argument_group("server")
    add_address_arguments(server)
    add = server.add_argument
    add("--wait", type=_SECONDS, default=5.0, metavar="MS",
        help="milliseconds that a line waits for others to share its batch, if nothing else is "
        "computed (default: %(default)g)")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="number of batches that are searched at the same time; on a CPU they share the "
        "threads (default: as for ds-seq generate)")  # fmt: skip
    add("--queue", type=COUNT, default=1024, metavar="N",
        help="most lines that are accepted and not answered yet; more are refused with status 503 "
        "(default: %(default)s)")  # fmt: skip
    add("--request-bytes", type=COUNT, default=1_000_000, metavar="N",
        help="largest body of a request (default: %(default)s)")  # fmt: skip
    add("--time-limit", type=Number(0.001, is_whole=False), default=60.0, metavar="S",
        help="seconds after which a request is given up with status 504 (default: "
        "%(default)g)")  # fmt: skip
    add("--most-beam", type=COUNT, default=32, metavar="N",
        help="largest beam and number of translations that a request may ask for (default: "
        "%(default)s)")  # fmt: skip
    add_search_arguments(parser)
    return parser
