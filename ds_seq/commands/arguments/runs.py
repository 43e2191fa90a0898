"""The arguments of `ds-seq runs`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.address import add_address_arguments
from ds_seq.commands.parser import CommandParser, command_parser
from ds_seq.reports.run_state import STATES
from ds_seq.reports.run_table import SORT_KEYS


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq runs`."""
    parser = command_parser(
        "runs",
        "List runs: state, update, best score, speed, time left and last error. Reads only the "
        "ends of their logs, and does not disturb runs that are being trained.",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="run folder, or folder with runs")
    add("--state", action="append", choices=STATES, help="only runs in this state; repeatable")
    add("--name", metavar="PATTERN", help="only runs whose name matches, such as 'en-*'")
    add("--sort", choices=SORT_KEYS, default="name", help="order of the rows (default: name)")
    add("--descending", action="store_true", help="largest value first")
    add("--diff", action="store_true", help="also show the settings in which the runs differ")
    add("--json", action="store_true", help="print a JSON list instead of a table")
    add("--serve", action="store_true",
        help="serve a page with the table, the settings in which runs differ, their curves, the "
        "load of their experts and their translations over time")  # fmt: skip
    add_address_arguments(parser.add_argument_group("server, for --serve"))
    return parser
