"""The command `ds-seq`: dispatches to the commands in `ds_seq.commands.COMMANDS`.

The module of a command is imported when it is called, so `ds-seq check` does not wait for torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from ds_seq import __version__
from ds_seq.commands import COMMANDS, run
from ds_seq.errors import UserError, run_command
from ds_seq.plugins import nearest


def usage() -> str:
    """Return the overview that `ds-seq --help` prints."""
    rows = [
        f"  {name:<{max(map(len, COMMANDS))}}  {command.help}" for name, command in COMMANDS.items()
    ]
    last = "ds-seq COMMAND --help lists a command's arguments; ds-seq --version prints the version."
    return "\n".join(["usage: ds-seq COMMAND [ARGUMENT ...]", "", *rows, "", last])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return the exit code."""
    return run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str]) -> int:
    if argv and re.fullmatch(r"--local[_-]rank=\d+", argv[0]):  # of `deepspeed --module ds_seq`
        argv = argv[1:]
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(f"ds-seq {__version__}" if name == "--version" else usage())
        return 0
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}{_meant(name)}; there are {', '.join(COMMANDS)}")
    return run(name, arguments)


def _meant(name: str) -> str:
    from ds_seq.config.customary import customary_command  # needed for a mistake only

    ours = customary_command(name)
    return nearest(name, COMMANDS) if ours is None else f"; ds_seq's name for it is {ours}"
