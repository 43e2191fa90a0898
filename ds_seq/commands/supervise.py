"""`ds-seq supervise`: start a command again after a crash or a hang, from what it has saved.

    ds-seq supervise -- deepspeed --num_gpus 8 ds_seq/train.py EXP.yaml
    ds-seq supervise --max-restarts 5 -- torchrun --nproc_per_node 8 ds_seq/train.py EXP.yaml
    ds-seq supervise -- ds-seq generate runs/x --input text.de --output text.en
    ds-seq supervise --run runs/x -- bash launch/train_step.sh

The words after `--` are looked through for a command of ds_seq. `train` and `generate` get
`--resume` when they are started again; `teacher-cache` and `pseudo-label` resume by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ds_seq import files
from ds_seq.commands.arguments.supervise import build_parser
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TRAINING
from ds_seq.errors import UserError
from ds_seq.supervision.supervisor import Job, Limits, Supervisor
from ds_seq.text.lines import STANDARD
from ds_seq.weights.meta import CHECKPOINTS, META_FILE

_RESUMABLE = ("train", "generate", "teacher-cache", "pseudo-label")
_STATE = "supervise"


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq supervise`; return the exit code."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    args = build_parser().parse_args(words[:place])
    command = words[place + 1 :]
    if not command:
        raise UserError(
            "supervise: no command; write ds-seq supervise [OPTION ...] -- COMMAND [ARGUMENT ...]"
        )
    job = _training(command, command, args.run) if args.run is not None else _job(command)
    return Supervisor(job, Limits(args.max_restarts, args.backoff, args.hang_seconds)).run()


def _job(command: list[str]) -> Job:
    """Find the command of ds_seq, what it writes, and how it resumes.

    Raises:
        UserError: there is none, it has a mistake, or it cannot resume.
    """
    name, start = _find(command)
    arguments = command[start:]
    parser = import_module(f"ds_seq.commands.arguments.{name.replace('-', '_')}").build_parser()
    args = parser.parse_intermixed_args(arguments)
    if name == "train":
        folder = load_experiment(args.experiment, args.overrides, TRAINING).run_folder
        again = [*command[:start], *_resumed(arguments)]
        return _training(command, again, folder, args.signal_exit_code)
    if name == "generate" and args.output == STANDARD:
        raise UserError(
            "supervise: generate cannot resume standard output; add --output FILE to the command"
        )
    output = args.output if name == "generate" else args.out
    if output is None:
        raise UserError(f"supervise: add --out FOLDER to {name}, so that it is known what it saves")
    work = Path(f"{output}.partial" if name == "generate" else output)
    again = list(command)
    if name == "generate" and not args.resume:
        again.append("--resume")
    return Job(
        command, again, Path(f"{output}.{_STATE}"), Path(output), _size_of(work, Path(output))
    )


def _find(command: Sequence[str]) -> tuple[str, int]:
    """Return the name of ds_seq's command, and where its arguments start."""
    for place, word in enumerate(command):
        parts = Path(word).parts
        name, start = "", place + 1
        if parts[-2:-1] == ("ds_seq",) and parts[-1] in ("train.py", "generate.py"):
            name = Path(word).stem
        elif parts[-1:] == ("ds-seq",) or (
            word == "ds_seq" and place and command[place - 1] in ("-m", "--module")
        ):
            name, start = "".join(command[place + 1 : place + 2]), place + 2
        if name in _RESUMABLE:
            return name, start
        if name:
            raise UserError(
                f"supervise: ds-seq {name} cannot resume; there are {', '.join(_RESUMABLE)}"
            )
    raise UserError(
        f"supervise: no command of ds_seq ({', '.join(_RESUMABLE)}) after --, only "
        f"{' '.join(command[:4])}; if a script that resumes runs it, name the run folder "
        "with --run"
    )


def _training(
    command: Sequence[str], again: Sequence[str], folder: Path, signal_exit_code: int = 0
) -> Job:
    """Return the job of a training: what is saved is the update of its newest checkpoint."""

    def saved() -> int:
        names = (path.parent.name for path in (folder / CHECKPOINTS).glob(f"*/{META_FILE}"))
        updates = (re.fullmatch(r"update_(\d+)", name) for name in names)
        return max((int(match[1]) for match in updates if match is not None), default=0)

    stopped = frozenset({signal_exit_code} - {0})
    lock = folder / files.LOCK_FILE
    return Job(command, again, folder / _STATE, folder, saved, lock, stopped)


def _resumed(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `train` that go on where it was: with nothing but --resume.

    `--overwrite` would delete what was saved, and `--checkpoint` go back to where it started.
    """
    kept, is_value = [], False
    for word in arguments:
        if is_value or word in ("--overwrite", "--resume") or word.startswith("--checkpoint="):
            is_value = False
        elif word == "--checkpoint":
            is_value = True
        else:
            kept.append(word)
    return [*kept, "--resume"]


def _size_of(work: Path, output: Path) -> Callable[[], int]:
    """Return a function that measures what is saved, in bytes."""

    def saved() -> int:
        places = {work, output}
        found = [path for place in places for path in (place, *place.rglob("*"))]
        return sum(_size(path) for path in found)

    return saved


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
