"""The commands, one module each; its `main(argv) -> int` parses, calls and prints."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """Name of the module with the command's `main(argv) -> int`, and the command's purpose."""

    module: str
    help: str


_HELP = {
    "check": "experiment file -> resolved settings, or its mistakes",
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
    "make-student": "run folder -> smaller model made of some of its layers",
    "teacher-cache": "teacher + shards -> cached outputs to train from",
    "verify": "run, export or data folder -> whether its files are intact",
    "moe-stats": "run folder + shards -> load of the experts",
}
COMMANDS = {
    name: Command(f"ds_seq.commands.{name.replace('-', '_')}", help) for name, help in _HELP.items()
}
