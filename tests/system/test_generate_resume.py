"""`ds-seq generate` as users run it: killed, through a pipe, on a terminal, on a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from ds_seq.generate import main
from ds_seq.generation.partial import JournalStore, Line
from ds_seq.models import build_model
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.distributed.harness import run_distributed
from tests.system.commands import REPOSITORY, ds_seq, run
from tests.system.forked import generate
from tests.unit.runs.made import experiment, write_run

LINES = 60
SEARCH = ("--beam", "3", "--max-tokens", "60", "--max-len-a", "0.3", "--max-len-b", "3")
"""With many small batches."""
FORMATS = [("--format", "jsonl", "--n-best", "2"), ("--format", "fairseq")]


class Work:
    """A text and a run of random weights."""

    def __init__(self, folder: Path) -> None:
        write_toy(folder, 300, 10)
        words = (folder / "train.en").read_text(encoding="utf-8").split()
        lines = [" ".join(words[7 * i : 7 * i + 1 + 5 * i % 11]) for i in range(LINES)]
        lines[5] = ""
        self.lines = lines
        self.text = folder / "text"
        self.text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.run = folder / "run"
        vocab = train_vocab([folder / "train.en", folder / "train.de"], folder / "vocab", 130)
        config = experiment({"max_positions": 64})
        model = build_model(config.model, len(vocab), 1, 0, seed=3)
        with torch.no_grad():  # an untrained model says nearly the same everywhere
            for parameter in model.parameters():
                parameter.mul_(1.5)
        write_run(self.run, config, vocab, {1: model})

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Of the command."""
        return [str(self.run), "--input", str(self.text), "--output", str(output), *SEARCH, *more]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The text that all tests translate; read-only."""
    return Work(tmp_path_factory.mktemp("work"))


def _killed(arguments: list[str], after: int) -> None:
    """Run the command, killed from outside when it has finished this many batches."""
    child = os.fork()
    if child == 0:
        keep, batches = JournalStore.add, iter(range(after - 1))

        def keep_and_die(store: JournalStore, lines: Sequence[Line]) -> None:
            keep(store, lines)
            if next(batches, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        JournalStore.add = keep_and_die  # type: ignore[method-assign, assignment]
        main(arguments)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "was through before it could be killed"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("more", FORMATS)
def test_killed_runs_resume_and_write_the_same_bytes(
    work: Work, tmp_path: Path, more: tuple[str, ...]
) -> None:
    whole, out, results = (tmp_path / name for name in ("whole", "out", "results"))
    more = (*more, "--reference", str(work.text))
    generate(*work.arguments(whole, *more))[0].check()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    for options in ((), ("--resume",)):
        run_distributed(_killed, 1, work.arguments(out, *more, *options), 3)
        assert not out.exists()
    journal = tmp_path / "out.partial" / "journal.00000"
    assert journal.read_bytes().count(b"\n") == 6
    refused = generate(*work.arguments(out, *more))[0]
    assert refused.code == 2 and "add --resume to continue it" in refused.err
    refused = generate(*work.arguments(out, *more, "--resume", "--min-len", "2"))[0]
    assert refused.code == 2 and "begun with another min-len" in refused.err
    more = (*more, "--resume", "--results", str(results))
    told = generate(*work.arguments(out, *more), ranks=2)[0].check().err
    assert out.read_bytes() == whole.read_bytes()
    assert "were done before" in told and f"translated {LINES} " not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results", "whole"]
    (entry,) = json.loads(results.read_text())[str(work.text)]
    assert (entry["n_obs"], entry["ranks"]) == (LINES, 2) and 0 < entry["n_resumed"] < LINES


@contextmanager
def _piped(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(word) for word in ds_seq("generate", *arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(stream: IO[Any] | None) -> str:
    assert stream is not None
    line: bytes = stream.readline()
    return line.decode()


@pytest.mark.timeout(120)
def test_translations_come_while_the_text_still_comes(work: Work, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(*work.arguments(out, "--format", "tsv"))[0].check()
    expected = out.read_text(encoding="utf-8").splitlines(keepends=True)
    options = ["--input", "-", "--buffer-size", "3", "--format", "tsv", *SEARCH]
    with _piped([str(work.run), *options]) as process:
        assert process.stdin is not None
        for start in (0, 3, 6):
            text = "".join(f"{line}\n" for line in work.lines[start : start + 3])
            process.stdin.write(text.encode())
            process.stdin.flush()
            answers = [_line(process.stdout) for _ in range(3)]  # before the input ends
            fields = [answer.split("\t")[::2] for answer in answers]
            assert fields == [row.split("\t")[::2] for row in expected[start : start + 3]]
        process.stdin.write(work.lines[9].encode())  # the last buffer is smaller, and not ended
        rest, told = process.communicate(timeout=60)
    assert rest.decode().split("\t")[::2] == expected[9].split("\t")[::2]
    assert b"translated 10 sentences" in told and b"translate:" not in told


@pytest.mark.timeout(120)
def test_a_bar_on_a_terminal_and_none_in_a_pipe(work: Work, tmp_path: Path) -> None:
    command = [str(word) for word in ds_seq("generate", *work.arguments(tmp_path / "out"))]
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shown = b""
    with subprocess.Popen(command, stderr=terminal, env=environ) as process:
        os.close(terminal)
        try:
            while block := os.read(control, 1 << 16):
                shown += block
        except OSError:  # a terminal reports that its writers are gone
            pass
        finally:
            os.close(control)
            process.kill()
    # such as "translate:  50%|####    | 30/60 [00:01<00:02, 14.9 sentences/s]"
    pattern = rf"translate: +\d+%\|.*\| *(\d+)/{LINES} \[\d+:\d+<\d+:\d+, .*sentences.*\]"
    found = [re.match(pattern, part) for part in shown.decode().split("\r")]
    counts = [int(match[1]) for match in found if match is not None]
    assert counts == sorted(counts) and counts[-1] == LINES and len(set(counts)) > 1, shown
    piped = run(command, timeout=60).check()
    assert "%" not in piped.err and "\r" not in piped.err


@pytest.mark.timeout(120)
def test_a_full_disk_is_reported_in_one_line(work: Work, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [str(word) for word in ds_seq("generate", str(work.run), "--input", work.text)]
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            timeout=60,
        )
    *_, last = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert last == "ds-seq: error: standard output: cannot be written: No space left on device"
