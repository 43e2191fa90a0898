"""The commands, one module each; its `main(argv) -> int` parses, calls and prints."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from ds_seq import launcher
from ds_seq.files.heartbeats import recorded


class Command(NamedTuple):
    """A command.

    Attributes:
        module: name of the module with the command's `main(argv) -> int`.
        help: purpose of the command.
        arguments: name of the module with the command's `build_parser()`, which imports no torch,
            so that `--help` and mistakes on the command line are answered before `module` is
            imported; None: `module` does all.
        wraps: whether what stands after `--` is another command, with arguments of its own.
    """

    module: str
    help: str
    arguments: str | None = None
    wraps: bool = False


_HELP = {
    "init": "parallel text -> experiment file",
    "recipes": "experiments that come with ds_seq: list, show, copy",
    "from-fairseq": "command of fairseq-train -> experiment file and DeepSpeed JSON",
    "check": "experiment file -> resolved settings, or its mistakes",
    "doctor": "machines, network, installation -> what is wrong with them",
    "prepare": "raw text -> clean text -> vocabulary -> shards",
    "show-batch": "experiment + shards -> what the model reads",
    "order": "experiment + shards -> pairs of each update, for any number of ranks",
    "convert-data": "fairseq's binarized data -> shards, or shards -> fairseq's",
    "train": "shards -> run folder",
    "slurm": "experiment -> job script for a cluster, checked and submitted",
    "supervise": "another command, started again after a crash or a hang",
    "generate": "run folder + text -> translations (and a score)",
    "interactive": "run folder -> translations as you type",
    "serve": "run folders -> translations over HTTP, and a page to look at them",
    "perplexity": "language model + text -> how well it predicts the text",
    "rescore": "run folder + text + translations -> scores",
    "pseudo-label": "run folder + shards -> shards with its translations",
    "score": "translations + references -> BLEU, chrF, p-values",
    "export": "run folder -> one file that translates",
    "import": "checkpoint of fairseq -> run folder",
    "average": "checkpoints -> their mean, as one model",
    "prune-experts": "run folder + text -> smaller model for that kind of text",
    "prune-heads": "run folder + text -> model with fewer attention heads",
    "make-student": "run folder -> smaller model made of some of its layers",
    "teacher-cache": "teacher + shards -> cached outputs to train from",
    "verify": "run, export or data folder -> whether its files are intact",
    "verify-data": "data folder -> the same as verify",
    "runs": "folders -> state, score and speed of each run",
    "plot": "run folders -> picture of their curves",
    "shortlist": "run folder + shards -> likely translations, for a faster search",
    "moe-stats": "run folder + shards -> load of the experts",
}


def _command(name: str, help: str) -> Command:
    file = name.replace("-", "_")
    return Command(f"{__name__}.{file}", help, f"{__name__}.arguments.{file}")


COMMANDS = {name: _command(name, help) for name, help in _HELP.items()}
COMMANDS["import"] = _command("import-model", _HELP["import"])  # `import` names no module
for _name in ("supervise", "from-fairseq"):
    COMMANDS[_name] = COMMANDS[_name]._replace(wraps=True)
COMMANDS["verify-data"] = COMMANDS["verify-data"]._replace(module=COMMANDS["verify"].module)


def run(name: str, argv: Sequence[str]) -> int:
    """Run a command of `COMMANDS` and return its exit code.

    Raises:
        UserError: the input is invalid.
    """
    launcher.watch()
    return recorded(lambda words: _run(COMMANDS[name], words), argv)


def _run(command: Command, argv: Sequence[str]) -> int:
    # Without this, pydantic reads the metadata of all installed packages in search of its plug-ins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Where a peer has ended, torch's C++ code prints pages; what is wrong is said by us, in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    gc.disable()  # imports make little garbage; looking for it takes a tenth of their time
    try:
        if command.arguments is not None:
            own = argv[: argv.index("--")] if command.wraps and "--" in argv else argv
            import_module(command.arguments).build_parser().parse_intermixed_args(own)
        main: Callable[[Sequence[str]], int] = import_module(command.module).main
    finally:
        gc.freeze()
        gc.enable()
    return main(argv)
