"""The commands: a module each, with ``main(argv) -> int``, that parses, calls and prints."""

from __future__ import annotations

from typing import NamedTuple


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
