"""The address of a server, for the commands that start one."""

from __future__ import annotations

from argparse import _ArgumentGroup

from ds_seq.commands.parser import Number

PORT = 8000


def add_address_arguments(group: _ArgumentGroup) -> None:
    """Add the options for where a server listens."""
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen to; 0.0.0.0: all addresses (default: %(default)s)",
    )
    group.add_argument(
        "--port",
        type=Number(0, 65535),
        default=PORT,
        metavar="N",
        help="port to listen to; 0: any free one (default: %(default)s)",
    )
