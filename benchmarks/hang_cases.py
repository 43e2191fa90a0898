"""Commands of ds_seq in two ranks, one hit by a signal at work: when does the other end, and how?

`measure` runs one case, `measure_restart` a supervised training. Both are used by
`survival_hangs.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ds_seq.files import heartbeats
from ds_seq.files.heartbeats import Heartbeats, Process
from ds_seq.supervision.processes import CommandProcess, adopt_orphans

REPOSITORY = Path(__file__).resolve().parent.parent
RANKS = 2
_START = 180.0  # seconds until a command works, on a busy machine
_BIN = Path(sys.executable).parent

_EXPERIMENT = """\
name: hit
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw:
    train: {{source: {folder}/train.en, target: {folder}/train.de}}
    valid: {{source: {folder}/valid.en, target: {folder}/valid.de}}
  max_source_length: 40
  max_target_length: 40
  vocab: {{size: 200, model_type: bpe}}
model: {{d_model: 32, encoder_layers: 1, decoder_layers: 1, num_heads: 2, ffn_dim: 64}}
optimizer: {{name: adamw, lr: 1e-3}}
scheduler: {{name: inverse_sqrt, warmup_updates: 100}}
train:
  {{max_tokens: 500, max_updates: 1000000, log_every: 1, validate_every: null, save_every: 20,
    tensorboard: false, hang_seconds: {limit}}}
"""
LONG_VALIDATION = ("train.validate_every=10", "validation.metrics=[bleu]", "generation.beam=8")
COMMANDS = ("train", "validation", "generate", "teacher-cache", "pseudo-label")
PHASES = {
    "train": ("training",),
    "validation": ("validation",),
    "generate": ("translation",),
    "teacher-cache": ("teacher",),
    "pseudo-label": ("translation",),
}


@dataclass(frozen=True)
class Lab:
    """A folder with text, shards and a trained model, made once.

    Attributes:
        folder: the folder.
        limit: seconds of `train.hang_seconds` and `--hang-seconds`.
    """

    folder: Path
    limit: float

    def make(self) -> None:
        """Write text, prepare shards and train for a few updates."""
        words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]
        draw = random.Random(1)
        for split, count in (("train", 3000), ("valid", 3000), ("long", 20000)):
            lines = [" ".join(draw.choices(words, k=draw.randint(5, 14))) for _ in range(count)]
            for side in ("en", "de"):
                text = [line if side == "en" else line[::-1] for line in lines]
                (self.folder / f"{split}.{side}").write_text("\n".join(text) + "\n")
        experiment = _EXPERIMENT.format(folder=self.folder, limit=self.limit)
        (self.folder / "exp.yaml").write_text(experiment)
        _ds_seq("prepare", self.folder / "exp.yaml")
        last = ("train.max_updates=20", f"run_dir={self.folder}/teacher")
        _ds_seq("train", self.folder / "exp.yaml", *last)

    def arguments(self, command: str, folder: Path) -> list[str]:
        """Return ds_seq's command and its arguments; it writes below `folder`."""
        experiment, teacher = str(self.folder / "exp.yaml"), str(self.folder / "teacher")
        limit = f"--hang-seconds={self.limit:g}"
        choose = ["--checkpoint", "last", limit]
        data = ["--data", str(self.folder / "data")]
        if command in ("train", "validation"):
            more = LONG_VALIDATION if command == "validation" else ()
            return ["train", experiment, f"run_dir={folder}/run", *more]
        if command == "generate":
            text = ["--input", str(self.folder / "long.en"), "--output", str(folder / "out")]
            return ["generate", teacher, *text, *choose, "--max-sentences=16"]
        out = ["--out", str(folder / "out")]
        if command == "teacher-cache":
            return [command, teacher, *data, *out, *choose, "--top-k=4", "--part-tokens=1000"]
        return [command, teacher, *data, *out, *choose, "--max-sentences=4", "--beam=8"]


def _ds_seq(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ds_seq", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def environment() -> dict[str, str]:
    """Return the variables of this process, on the CPU, and with the repository on the path."""
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **on_cpu, "PYTHONPATH": path}


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LAUNCHERS: dict[str, Callable[[Sequence[str]], list[list[str]]]] = {
    # each rank by itself: nobody ends the others
    "none": lambda words: [
        [
            "env",
            f"RANK={rank}",
            f"LOCAL_RANK={rank}",
            *(f"WORLD_SIZE={RANKS}", "MASTER_ADDR=127.0.0.1", "MASTER_PORT={port}"),
            *(sys.executable, "-m", "ds_seq", *words),
        ]
        for rank in range(RANKS)
    ],
    "deepspeed": lambda words: [
        [
            *(sys.executable, str(_BIN / "deepspeed"), "--quiet", "--num_gpus", str(RANKS)),
            *("--master_port", "{port}", "--module", "ds_seq", *words),
        ]
    ],
    "torchrun": lambda words: [
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS)),
            *("--master_port", "{port}", "-m", "ds_seq", *words),
        ]
    ],
    "mpirun": lambda words: [
        [
            *("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(RANKS)),
            *(sys.executable, "-m", "ds_seq", *words),
        ]
    ],
}


class Outcome(NamedTuple):
    """What the other rank did after one was hit.

    Attributes:
        seconds: seconds until it had ended; None: it ran on after four times the limit.
        code: exit code that it has written; None: it was killed by the launcher.
        is_explained: whether the log has a stack and the last collective.
        left: processes that were still there when the command of the launcher had ended, or after
            the limit, without the one that was hit.
    """

    seconds: float | None
    code: int | None
    is_explained: bool
    left: int


@contextmanager
def _running(
    lines: Sequence[Sequence[str]], folder: Path
) -> Iterator[tuple[list[CommandProcess], Heartbeats]]:
    """Start processes whose output goes to `folder`/log; kill all that is left at the end."""
    beats_folder, port = folder / "beats", str(free_port())
    beats_folder.mkdir()
    beats = Heartbeats(beats_folder)
    environ = {**environment(), heartbeats.FOLDER: str(beats_folder)}
    log = folder / "log"
    shell = 'log=$1; shift; exec "$@" >>"$log" 2>&1'
    started = [
        CommandProcess(
            ["bash", "-c", shell, "sh", str(log), *(w.replace("{port}", port) for w in words)],
            environ,
        )
        for words in lines
    ]
    try:
        yield started, beats
    finally:
        for process in started:
            beats.read()
            process.kill_all(p.pid for p in beats.processes.values() if p.is_running)


def _by_rank(beats: Heartbeats) -> dict[int, Process]:
    beats.read()
    return {int(p.beat["rank"]): p for p in beats.processes.values() if p.beat}


def measure(
    lab: Lab, command: str, launcher: str, rank: int, number: signal.Signals
) -> Outcome | str:
    """Hit a rank of a command with a signal while both are at work.

    Args:
        lab: text, shards and a model.
        command: one of `COMMANDS`.
        launcher: one of `LAUNCHERS`.
        rank: rank that is hit.
        number: `SIGKILL` or `SIGSTOP`.

    Returns:
        What the other rank did, or why the case could not be run.
    """
    adopt_orphans()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = LAUNCHERS[launcher](lab.arguments(command, folder))
        with _running(lines, folder) as (started, beats):
            deadline = time.monotonic() + _START
            while not _is_at_work(ranks := _by_rank(beats), command):
                if time.monotonic() > deadline or None not in [p.poll() for p in started]:
                    return f"did not start: {(folder / 'log').read_text()[-500:]}"
                time.sleep(0.02)
            victim, other = ranks[rank], ranks[1 - rank]
            os.kill(victim.pid, number)
            hit, seconds = time.monotonic(), None
            while time.monotonic() - hit < 4 * lab.limit:
                for process in started:
                    process.poll()
                if not other.is_running:
                    seconds = time.monotonic() - hit
                    break
                time.sleep(0.01)
            beats.read()
            text = (folder / "log").read_text(errors="replace")
            explained = "last collective" in text or "a collective has failed" in text
            has_stack = "most recent call" in text
            return Outcome(seconds, other.code, explained and has_stack, int(other.is_running))


def _is_at_work(ranks: dict[int, Process], command: str) -> bool:
    return len(ranks) == RANKS and all(
        process.beat["phase"] in PHASES[command] and not process.beat["left"]
        for process in ranks.values()
    )


class Restart(NamedTuple):
    """A supervised training after a hit.

    Attributes:
        noticed: seconds from the hit to the line of the restart in the journal.
        first: seconds from the hit to the first new update.
        repeated: updates that were run again.
    """

    noticed: float
    first: float
    repeated: int


def measure_restart(
    lab: Lab, launcher: str, rank: int, number: signal.Signals, backoff: float = 0.0
) -> Restart | str:
    """Hit a rank of a supervised training, and wait for its first new update.

    Args:
        lab: text and shards.
        launcher: one of `LAUNCHERS` but `none`.
        rank: rank that is hit.
        number: `SIGKILL` or `SIGSTOP`.
        backoff: seconds that the supervisor waits before the restart.

    Returns:
        The seconds, or why the case could not be run.
    """
    adopt_orphans()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        [words] = LAUNCHERS[launcher](lab.arguments("train", folder))
        supervise = [sys.executable, "-m", "ds_seq", "supervise", "--backoff", str(backoff), "--"]
        with _running([[*supervise, *words]], folder) as (started, _):
            first = Heartbeats(run / "supervise" / "heartbeats" / "0")
            if not _until(lambda: _saved(run) > 0 and len(_by_rank(first)) == RANKS, started):
                return f"did not start: {(folder / 'log').read_text()[-500:]}"
            if "restart" in _events(run):
                return "started again before it was hit: this machine is too busy for the limit"
            os.kill(_by_rank(first)[rank].pid, number)
            hit, last = time.time(), max(logged_updates(run), default=0)
            if not _until(lambda: "restart" in _events(run), started):
                return f"no restart: {(folder / 'log').read_text()[-500:]}"
            noticed = time.time() - hit
            if not _until(
                lambda: max(logged_updates(run).values(), default=0) > hit + noticed, started
            ):
                return f"no new update: {(folder / 'log').read_text()[-500:]}"
            new = [
                (when, update)
                for update, when in logged_updates(run).items()
                if when > hit + noticed
            ]
            when, update = min(new)
            return Restart(noticed, when - hit, last + 1 - update)


def _until(condition: Callable[[], bool], started: Sequence[CommandProcess]) -> bool:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and started[0].poll() is None:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _saved(run: Path) -> int:
    return len(list(run.glob("checkpoints/update_*/checkpoint.json")))


def _lines(path: Path) -> list[dict[str, object]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def _events(run: Path) -> list[object]:
    return [line["event"] for line in _lines(run / "supervise" / "journal.jsonl")]


def logged_updates(run: Path) -> dict[int, float]:
    """Return when each update was logged, which is forgotten when a run resumes before it."""
    lines = [line for line in _lines(run / "metrics.jsonl") if line["kind"] == "train"]
    return {int(str(line["update"])): float(str(line["time"])) for line in lines}
