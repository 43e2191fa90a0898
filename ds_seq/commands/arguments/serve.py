"""The arguments of `ds-seq serve`."""

from __future__ import annotations

from typing import NamedTuple

from ds_seq.commands.arguments.address import add_address_arguments
from ds_seq.commands.arguments.shared import (
    RUN_HELP,
    add_loading_arguments,
    add_search_arguments,
)
from ds_seq.commands.parser import COUNT, CommandParser, Number, command_parser

_SECONDS = Number(0, is_whole=False)


class ServerQueue(NamedTuple):
    """Limits of a server, and how it makes batches."""

    lines: int
    """Most lines that are accepted and not answered yet."""
    request_bytes: int
    """Largest body of a request."""
    seconds: float
    """Time after which a request is given up."""
    wait_milliseconds: float
    """Time that a line waits for others to share its batch, if nothing else is computed."""
    most_beam: int
    """Largest beam and number of translations that a request may ask for."""
    workers: int | None
    """Batches that are searched at the same time; None: as for `ds-seq generate`."""

    @classmethod
    def usual(cls) -> ServerQueue:
        """Return what `ds-seq serve` takes without options."""
        return cls(1024, 1_000_000, 60.0, 5.0, 32, None)


USUAL_QUEUE = ServerQueue.usual()


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
    add("--wait", type=_SECONDS, default=USUAL_QUEUE.wait_milliseconds, metavar="MS",
        help="milliseconds that a line waits for others to share its batch, if nothing else is "
        "computed (default: %(default)g)")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="number of batches that are searched at the same time; on a CPU they share the "
        "threads (default: as for ds-seq generate)")  # fmt: skip
    add("--queue", type=COUNT, default=USUAL_QUEUE.lines, metavar="N",
        help="most lines that are accepted and not answered yet; more are refused with status 503 "
        "(default: %(default)s)")  # fmt: skip
    add("--request-bytes", type=COUNT, default=USUAL_QUEUE.request_bytes, metavar="N",
        help="largest body of a request (default: %(default)s)")  # fmt: skip
    add("--time-limit", type=Number(0.001, is_whole=False), default=USUAL_QUEUE.seconds,
        metavar="S",
        help="seconds after which a request is given up with status 504 (default: "
        "%(default)g)")  # fmt: skip
    add("--most-beam", type=COUNT, default=USUAL_QUEUE.most_beam, metavar="N",
        help="largest beam and number of translations that a request may ask for (default: "
        "%(default)s)")  # fmt: skip
    add_search_arguments(parser)
    return parser
