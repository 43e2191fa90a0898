"""The command ``ds-seq``: a table from command to function.

A command's module is imported when the command is called, so `ds-seq check` never waits for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ds_seq import __version__
from ds_seq.errors import UserError, run_command
from ds_seq.plugins import import_object, nearest

Main = Callable[[Sequence[str]], int]


class Command(NamedTuple):
    """The module that has the command's ``main(argv) -> int``, and what it is for."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "check": Command("ds_seq.commands.check", "what an experiment file means, or its mistakes"),
    "prepare": Command("ds_seq.commands.prepare", "raw text -> clean text -> vocabulary -> shards"),
    "train": Command("ds_seq.train", "shards -> run folder"),
    "generate": Command("ds_seq.generate", "run folder + text -> translations (and a score)"),
    "interactive": Command("ds_seq.commands.interactive", "run folder -> translations as you type"),
    "rescore": Command("ds_seq.commands.rescore", "run folder + text + translations -> scores"),
    "pseudo-label": Command(
        "ds_seq.commands.pseudo_labels", "run folder + shards -> shards with its translations"
    ),
    "score": Command("ds_seq.commands.score", "translations + references -> BLEU, chrF, p-values"),
    "export": Command("ds_seq.commands.export", "run folder -> one file that translates"),
    "average": Command("ds_seq.commands.average", "checkpoints -> their mean, as one model"),
    "prune-experts": Command(
        "ds_seq.commands.prune_experts",
        "run folder + text -> smaller model for that kind of text",
    ),
    "make-student": Command(
        "ds_seq.commands.make_student", "run folder -> smaller model of some of its layers"
    ),
    "teacher-cache": Command(
        "ds_seq.commands.teacher_cache", "teacher + shards -> its answers, to train from"
    ),
    "moe-stats": Command("ds_seq.commands.moe_stats", "run folder + shards -> load of the experts"),
}


def usage() -> str:
    """The overview that `ds-seq --help` prints."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ds-seq COMMAND [ARGUMENT ...]",
            "",
            *rows,
            "",
            "ds-seq COMMAND --help lists the arguments of a command; ds-seq --version tells mine.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    return run_command(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"ds-seq {__version__}")
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        raise UserError(
            f"no command {name!r}{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}"
        )
    command: Main = import_object("command", f"{COMMANDS[name].module}:main")
    return command(arguments)
