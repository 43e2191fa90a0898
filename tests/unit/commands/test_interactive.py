"""`ds-seq interactive` on a real terminal and in a pipe, with a small untrained model."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ds_seq.commands.interactive import interlinear, main
from ds_seq.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, run_command
from ds_seq.generate import main as generate
from ds_seq.models import build_model
from tests.data.toy import toy_pairs, write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

HELLO = "Type a sentence and press Enter; Ctrl-D ends."
CTRL_C, CTRL_D = b"\x03", b"\x04"
SECONDS = 30.0
LINES = [source for source, _ in toy_pairs(3, seed=8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder, 200, 10)
    vocab = train_vocab([folder / "train.en", folder / "train.de"], folder / "m", 130)
    config = experiment({"max_positions": 40})
    model = build_model(config.model, len(vocab), 1, 0, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return write_run(folder / "run", config, vocab, {10: model})


def as_text(shown: bytes) -> str:
    return shown.decode(errors="replace").replace("\r\n", "\n")


class Terminal:
    """A process on the other end of a terminal."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.descriptor = descriptor

    def type(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def until(self, mark: str) -> str:
        """What appears on the screen, up to a text; '' stands for the end of all."""
        shown = b""
        deadline = time.monotonic() + SECONDS
        while not mark or mark not in as_text(shown):
            assert time.monotonic() < deadline, shown
            if not select.select([self.descriptor], [], [], 0.1)[0]:
                continue
            try:
                block = os.read(self.descriptor, 4096)
            except OSError:  # Linux's way to say that the other end is closed
                block = b""
            if not block:
                assert not mark, shown
                break
            shown += block
        return as_text(shown)

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def on_terminal(*arguments: object) -> Iterator[Terminal]:
    """The command as the leader of a session with a separate terminal."""
    pid, descriptor = pty.fork()
    if pid == 0:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
            code = run_command(main, [str(argument) for argument in arguments])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    terminal = Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(descriptor)


def test_a_session_on_a_terminal(run: Path) -> None:
    with on_terminal(run, "--n-best", 2, "--beam", 3) as terminal:
        assert HELLO in terminal.until("> ")
        terminal.type(LINES[0].encode() + b"\n")
        answer = terminal.until("\n\n> ").split("\n")
        assert answer[0] == LINES[0]  # the echo
        scores = [float(row.split("  ")[0]) for row in answer[1:3]]
        assert scores == sorted(scores, reverse=True) and scores[0] < 0
        assert answer[3] == ""
        terminal.type(b"\n   \n")  # empty lines: nothing but the next prompts
        assert terminal.until("> > ").strip().strip(">").strip() == ""
        terminal.type(b"a\xff\n")  # a mistake does not end the session
        assert "standard input: line 4: invalid UTF-8" in terminal.until("\n> ")
        terminal.type(b"x " * 100 + b"\n")
        assert "longer than the 39 pieces that the model takes" in terminal.until("\n\n> ")
        terminal.type(CTRL_D)
        assert terminal.until("") == "\n"
        assert terminal.code() == 0


@pytest.mark.parametrize("before", [b"", b"half a sen"])
def test_ctrl_c_leaves_without_a_traceback(run: Path, before: bytes) -> None:
    with on_terminal(run) as terminal:
        terminal.until("> ")
        terminal.type(before + CTRL_C)
        assert terminal.until("").split("\n")[1:] == ["ds-seq: interrupted", ""]
        assert terminal.code() == EXIT_INTERRUPTED


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes, *arguments: object) -> int:
    stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    return run_command(main, [str(argument) for argument in arguments])


def test_in_a_pipe_there_are_tables_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = "".join(f"{line}\n\n" for line in LINES).encode()
    assert piped(monkeypatch, content, run, "--n-best", 3) == 0
    out, err = capfd.readouterr()
    assert err == ""
    rows = iter(out.split("\n"))
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    files = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    listed = ["--n-best", "3", "--format", "tsv", "--align"]
    assert generate([str(run), *files, *listed]) == 0
    table = [row.split("\t") for row in (tmp_path / "out").read_text().split("\n")[:-1]]
    for number, line in enumerate(LINES):
        for _, score, text, _ in table[3 * number : 3 * number + 3]:
            shown = next(rows)
            assert float(shown[:8]) == pytest.approx(float(score), abs=1e-4)
            assert shown[8:].strip() == text
        assert next(rows) == ""
        # the words of the best one, in their order, and what they look at
        best, pairs = table[3 * number][2], table[3 * number][3].split()
        above: list[str] = []
        below: list[str] = []
        while len(above) < len(best.split()):
            above += next(rows).split()
            below += next(rows).split()
            assert next(rows) == ""
        assert above == best.split()
        expected: dict[int, list[str]] = {}
        for pair in pairs:
            origin, word = map(int, pair.split("-"))
            expected.setdefault(word, []).append(line.split()[origin])
        assert below == ["+".join(expected.get(n, ["-"])) for n in range(len(above))]
    assert list(rows) == [""]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"w\xff\n", [], "standard input: line 1: invalid UTF-8"),
        (b"", ["--n-best", 9], "--n-best 9: the search keeps 5 hypotheses"),
        (b"", ["--beam", 0], "--beam"),
        (b"", ["--expert-parallel", 2], "--expert-parallel 2"),
        (b"", ["--checkpoint", "none"], "no checkpoint 'none'"),
    ],
)
def test_bad_input_gets_one_line(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    content: bytes,
    arguments: list[object],
    message: str,
) -> None:
    assert piped(monkeypatch, content, run, *arguments) == EXIT_USER_ERROR
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("ds-seq: error: ") and message in err


def test_several_processes_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert piped(monkeypatch, b"a\n", run) == EXIT_USER_ERROR
    assert "2 processes cannot share one terminal" in capfd.readouterr().err


def test_rows_are_as_wide_as_the_screen_allows() -> None:
    columns = [("a", "one"), ("long", "b"), ("x", "y"), ("word", "z" * 30), ("c", "d")]
    assert list(interlinear(columns, 100)) == [
        "a    long  x  word                            c",
        f"one  b     y  {'z' * 30}  d",
    ]
    for width in (12, 15):
        rows = list(interlinear(columns, width))
        assert rows[2::3] == [""] * (len(rows) // 3)
        assert " ".join(rows[0::3]).split() == [above for above, _ in columns]
        assert " ".join(rows[1::3]).split() == [below for _, below in columns]
        assert max(len(row) for row in rows if "z" not in row) == 12
    for width in (9, 11):
        assert list(interlinear(columns[:3], width)) == ["a    long", "one  b", "", "x", "y"]
    assert list(interlinear([], 10)) == []
