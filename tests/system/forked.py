"""Commands in forked processes: real ranks, without a second import of torch and DeepSpeed."""

from __future__ import annotations

import importlib
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from ds_seq import cli, errors
from ds_seq import generate as generate_command
from ds_seq import train as train_command
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generation import GenerationConfig
from tests.distributed.harness import Launcher, run_distributed, torch_launcher
from tests.system.commands import Finished

# Commands import what they need late, and the schema is built when it is first used: here once,
# and not in every process that is forked.
for _name in ("ds_seq.commands.generate", "ds_seq.commands.train", "ds_seq.training.run"):
    importlib.import_module(_name)
for _config in (ExperimentConfig, GenerationConfig):
    _config.model_rebuild()

Main = Callable[[Sequence[str]], int]


def train(
    *arguments: str | Path,
    ranks: int = 1,
    timeout: float = 60.0,
    launcher: Launcher = torch_launcher,
) -> list[Finished]:
    """``ds-seq train`` on ``ranks`` processes; returns what each of them left."""
    return _run(train_command.main, arguments, ranks, timeout, launcher)


def generate(*arguments: str | Path, ranks: int = 1, timeout: float = 60.0) -> list[Finished]:
    """Run `ds-seq generate` in the same way."""
    return _run(generate_command.main, arguments, ranks, timeout)


def command(*arguments: str | Path, ranks: int = 1, timeout: float = 60.0) -> list[Finished]:
    """Run `ds-seq ARGUMENTS` in the same way."""
    return _run(cli.main, arguments, ranks, timeout)


def script(code: str, folder: Path, timeout: float = 60.0) -> Finished:
    """Run Python code in a folder, in the same way."""
    return _run(_execute, (folder, code), 1, timeout)[0]


def _execute(argv: Sequence[str]) -> int:
    os.chdir(argv[0])
    exec(argv[1], {"__name__": "__main__"})
    return 0


def kill_when(condition: Callable[[], bool], *arguments: str | Path) -> None:
    """Run `ds-seq ARGUMENTS` in one process, and kill it as soon as the condition holds.

    However long that takes: the time limit of the test is the only one.
    """
    argv = [str(argument) for argument in arguments]
    process = mp.get_context("fork").Process(target=_captured, args=(cli.main, argv), daemon=True)
    process.start()
    try:
        while not condition():
            assert process.is_alive(), "ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()


def _run(
    main: Main,
    arguments: Sequence[str | Path],
    ranks: int,
    timeout: float,
    launcher: Launcher = torch_launcher,
) -> list[Finished]:
    argv = [str(argument) for argument in arguments]
    return run_distributed(_captured, ranks, main, argv, timeout=timeout, launcher=launcher)


def _captured(main: Main, argv: list[str]) -> Finished:
    """Exit code and output, those of libraries and child processes included."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        for stream, file in ((sys.stdout, out), (sys.stderr, err)):
            stream.flush()
            os.dup2(file.fileno(), 1 if stream is sys.stdout else 2)
        sys.stdout, sys.stderr = out, err  # pytest has put its own there
        try:
            code = errors.run_command(main, argv)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        texts = []
        for file in (out, err):
            file.flush()
            file.seek(0)
            texts.append(file.read())
    return Finished(code, *texts)
