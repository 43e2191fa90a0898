"""`ds-seq slurm`: a job script for a SLURM cluster, shown and, if wanted, submitted."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import ds_seq
from ds_seq import files
from ds_seq.commands import check
from ds_seq.commands.arguments import generate
from ds_seq.commands.arguments.slurm import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import outside_names
from ds_seq.errors import UserError
from ds_seq.plugins import is_trusted

FOLDER = "slurm"
"""Folder in a run folder with its job scripts and their logs."""

_TIME = r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}"


def main(argv: Sequence[str]) -> int:
    """Check the experiment, write and show the script; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    launch = _launch_folder()
    _check_options(options)
    folder, name, arguments = _plan(options)
    lines = _script(options, launch, folder, name, arguments)
    path = folder / f"{options.job}.sbatch"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, lines)
    print(lines, end="")
    if not options.submit:
        print(f"written to {path}; submit it: sbatch {shlex.quote(str(path))}", file=sys.stderr)
        return 0
    job = _submit(path)
    print(f"submitted job {job}; its log is in {folder}", file=sys.stderr)
    return 0


def _launch_folder() -> Path:
    folder = Path(ds_seq.__file__).resolve().parents[1] / "launch"
    if not (folder / "slurm_step.sh").is_file():
        raise UserError(
            f"ds-seq slurm: there is no {folder} with the scripts of the repository; install "
            "ds_seq from a checkout (bash launch/setup.sh)"
        )
    return folder


def _check_options(options: argparse.Namespace) -> None:
    if options.gpus_per_node is not None and options.tasks_per_node is not None:
        raise UserError(
            "--tasks-per-node: applies without GPUs; with --gpus-per-node there is a rank per GPU"
        )
    if options.time is not None and re.fullmatch(_TIME, options.time) is None:
        raise UserError(
            f"--time {options.time}: should be minutes, H:M:S or D-H:M:S, such as 90 or 1-12:00:00"
        )
    if options.sweep is not None and options.job != "train":
        raise UserError(f"--sweep: trains several runs; it does not apply to --job {options.job}")
    values = (options.partition, options.account, *options.sbatch)
    for value in filter(None, values):
        if not value.isprintable():
            raise UserError(f"{value!r}: has a line break; an option of sbatch is one line")
    for value in options.sbatch:
        if not value.startswith("-"):
            raise UserError(f"--sbatch {value}: should be an option, such as --sbatch=--qos=high")


def _plan(options: argparse.Namespace) -> tuple[Path, str, list[str]]:
    """Return the folder of the script, the name of the job, and the arguments of its script.

    Raises:
        UserError: the experiment has mistakes, or does not fit the number of ranks.
    """
    source, overrides = options.experiment, options.overrides
    if options.job == "generate":
        if not Path(source).exists():
            raise UserError(f"{source}: no such run folder or exported model")
        generate.build_parser().parse_intermixed_args([source, *overrides])
        run = Path(source) if Path(source).is_dir() else Path(source).parent
        return run / FOLDER, f"{Path(source).name}-generate", [source, *overrides]
    config = load_experiment(source, overrides)
    trusted = [name for _, name in outside_names(config) if is_trusted(name)]
    arguments = [source, *overrides, *(f"--trust={name}" for name in dict.fromkeys(trusted))]
    if options.job == "prepare":
        _check([source, *overrides])
        return config.run_folder / FOLDER, f"{config.name}-prepare", arguments
    on_ranks = ["--world-size", str(_ranks(options))]
    if options.sweep is None:
        _check([source, *overrides, *on_ranks])
        return config.run_folder / FOLDER, config.name, arguments
    sweep = Path(options.sweep)
    for number, settings in _settings(sweep):
        try:
            _check([source, *overrides, *settings, *on_ranks])
        except UserError as error:
            raise UserError(f"{sweep}: line {number}: {error}") from error
    arguments = ["--sweep", str(sweep), *arguments]
    return Path("runs") / sweep.stem / FOLDER, sweep.stem, arguments


def _check(arguments: Sequence[str]) -> None:
    """Do what `ds-seq check` does, without its report."""
    with redirect_stdout(io.StringIO()):
        check.main(arguments)


def _ranks(options: argparse.Namespace) -> int:
    per_node: int = options.gpus_per_node or options.tasks_per_node or 1
    return per_node * int(options.nodes)


def _settings(sweep: Path) -> list[tuple[int, list[str]]]:
    """Return the number and the overrides of each line of a sweep.

    Raises:
        UserError: the file cannot be read, has no lines, or a line is not a list of overrides.
    """
    try:
        text = sweep.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sweep {sweep}: {error}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UserError(f"{sweep}: line {number}: a quote is not closed") from error
        for word in words:
            if "=" not in word:
                raise UserError(f"{sweep}: line {number}: {word}: should be key=value")
        found.append((number, words))
    if not found:
        raise UserError(f"{sweep}: has no lines; write the overrides of one run on each")
    return found


def _script(
    options: argparse.Namespace, launch: Path, folder: Path, name: str, arguments: Sequence[str]
) -> str:
    script = launch / f"slurm_{options.job}.sbatch"
    folder = folder.absolute()
    shown = "%A_%a" if options.sweep is not None else "%j"
    own: dict[str, object] = {
        "job-name": re.sub(r"[^\w.-]", "_", name),
        "nodes": options.nodes,
        "gpus-per-node": options.gpus_per_node,
        "ntasks-per-node": None if options.gpus_per_node else options.tasks_per_node or 1,
        "cpus-per-gpu" if options.gpus_per_node else "cpus-per-task": options.cpus_per_rank,
        "time": options.time,
        "output": f"{str(folder).replace('%', '%%')}/%x-{shown}.out",
        "partition": options.partition,
        "account": options.account,
        "dependency": None if options.after is None else f"afterok:{options.after}",
        "array": None if options.sweep is None else f"1-{len(_settings(Path(options.sweep)))}",
    }
    settings = _defaults(script) | {key: str(value) for key, value in own.items() if value}
    prefix = shlex.quote(sys.prefix)
    command = [str(script), *arguments]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Written by `ds-seq slurm`, which has checked it for {_ranks(options)} rank(s).",
            *(
                f"#SBATCH --{key}" + (f"={_quoted(value)}" if value else "")
                for key, value in settings.items()
            ),
            *(f"#SBATCH {option}" for option in options.sbatch),
            "",
            f"export VIRTUAL_ENV={prefix} PATH={prefix}/bin:$PATH",
            f"export DS_SEQ_LAUNCH={shlex.quote(str(launch))}",
            f"export DS_SEQ_RANK_LOGS={shlex.quote(str(folder))}",
            f"export SLURM_SUBMIT_DIR={shlex.quote(str(Path.cwd()))}  # relative paths begin here",
            f"exec bash {shlex.join(command)}",
            "",
        ]
    )


def _defaults(script: Path) -> dict[str, str]:
    """Return the options of sbatch that a script of the repository sets for itself."""
    found = {}
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.startswith("#SBATCH --"):
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[key] = value
    return found


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w%./:@,+-]+", value) else f'"{value}"'


def _submit(path: Path) -> str:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path)], capture_output=True, text=True, timeout=120
        )
    except OSError as error:
        raise UserError(
            f"--submit: sbatch cannot be started ({error.strerror}); the script is {path}: submit "
            "it on a node that has SLURM's commands"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"--submit: sbatch did not answer within 2 minutes; see `squeue`, then submit {path}"
        ) from error
    if done.returncode != 0:
        message = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
        raise UserError(f"--submit: sbatch refuses {path}: {message}")
    return done.stdout.split(";")[0].strip()
