"""The command ``ds-seq``: a table from command to the module that has its ``main(argv) -> int``.

A command's module is imported when the command is called, so `ds-seq check` never waits for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ds_seq import __version__
from ds_seq.errors import UserError, run_command
from ds_seq.plugins import import_object, nearest


class Command(NamedTuple):
    """The module that has the command's ``main(argv) -> int``, and what the command is for."""

    module: str
    help: str


_HELP = {
    "check": "what an experiment file means, or its mistakes",
    "prepare": "raw text -> clean text -> vocabulary -> shards",
    "train": "shards -> run folder",
    "generate": "run folder + text -> translations (and a score)",
    "interactive": "run folder -> translations as you type",
    "rescore": "run folder + text + translations -> scores",
    "pseudo-label": "run folder + shards -> shards with its translations",
    "score": "translations + references -> BLEU, chrF, p-values",
    "export": "run folder -> one file that translates",
    "average": "checkpoints -> their mean, as one model",
    "prune-experts": "run folder + text -> smaller model for that kind of text",
    "make-student": "run folder -> smaller model of some of its layers",
    "teacher-cache": "teacher + shards -> its answers, to train from",
    "moe-stats": "run folder + shards -> load of the experts",
}
COMMANDS = {
    name: Command(f"ds_seq.commands.{name.replace('-', '_')}", help) for name, help in _HELP.items()
}


def usage() -> str:
    """The overview that `ds-seq --help` prints."""
    rows = [f"  {name:<{max(map(len, COMMANDS))}}  {help}" for name, (_, help) in COMMANDS.items()]
    last = "ds-seq COMMAND --help lists the arguments of a command; ds-seq --version tells mine."
    return "\n".join(["usage: ds-seq COMMAND [ARGUMENT ...]", "", *rows, "", last])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    return run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str]) -> int:
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(f"ds-seq {__version__}" if name == "--version" else usage())
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UserError(f"no command {name!r}{nearest(name, COMMANDS)}; there are {known}")
    run: Callable[[Sequence[str]], int] = import_object("command", f"{COMMANDS[name].module}:main")
    return run(arguments)
