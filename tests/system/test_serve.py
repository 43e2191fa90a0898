"""`ds-seq serve` as a process: its start, its mistakes, and its end by a signal."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_seq.cli import main

RUNS = Path(__file__).parents[1] / "compat" / "v0_1" / "runs"
LINES = ["the queen sells seven old keys in the evening", "the man paints ninety small lamps"]


@contextmanager
def served(
    *arguments: object, command: str = "serve"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and its address."""
    started = [sys.executable, "-m", "ds_seq", command, *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(started, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"serving at (http://\S+)/", line)
        assert found is not None, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def ask(address: str, text: str, path: str = "/translate") -> tuple[int, str]:
    """The status and the answer; status 0: the server takes no connection, or closes it unread."""
    body = json.dumps({"text": text, "search": {"beam": 8}, "n_best": 8}).encode()
    request = urllib.request.Request(f"{address}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        assert isinstance(reason, ConnectionError)
        return 0, ""


def test_no_request_that_has_arrived_is_lost_by_a_signal() -> None:
    with served(RUNS / "dense", "--most-beam", 8, "--wait", 1500) as (process, address):
        early: list[tuple[int, str]] = []
        threads = [
            threading.Thread(target=lambda line: early.append(ask(address, line)), args=(line,))
            for line in LINES * 10
        ]
        streams: list[tuple[int, str]] = []
        text = ". ".join(line.capitalize() for line in LINES * 17)  # more than are searched ahead
        last = threading.Thread(
            target=lambda: streams.append(ask(address, text, "/translate/stream"))
        )
        threads.append(last)
        for thread in threads:
            thread.start()
        while len(early) + len(streams) + _in_flight(address) < len(
            threads
        ):  # they wait for more company
            pass
        process.send_signal(signal.SIGTERM)
        late = [ask(address, LINES[0])[0]]
        while late[-1] == 503:
            late.append(ask(address, LINES[0])[0])
        for thread in threads:
            thread.join()
        assert [status for status, _ in early] == [200] * 20
        (stream,) = streams
        assert stream[0] == 200 and stream[1].count("event: sentence") == 34
        assert stream[1].endswith("event: done\ndata: {}\n\n")
        texts = {json.loads(answer)["lines"][0]["hypotheses"][0]["text"] for _, answer in early}
        assert len(texts) == 2
        assert {*late} <= {503, 0}
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def _in_flight(address: str) -> int:
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        found = re.search(
            r"^ds_seq_requests_in_flight (\S+)$", answer.read().decode(), re.MULTILINE
        )
    assert found is not None
    return int(float(found[1]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such run folder"),
        (["x="], "x=: should be [NAME=]RUN"),
        ([f"{RUNS / 'dense'}@none"], "none"),
        ([str(RUNS / "dense"), str(RUNS / "dense")], "name both of them: NAME="),
        ([f"both={RUNS / 'dense'},{RUNS / 'moe'}", "--beam", "x"], "--beam"),
        ([str(RUNS / "dense"), "--host", "192.0.2.1"], "--host 192.0.2.1 --port 0: cannot be"),
        ([str(RUNS / "dense"), "--queue", "0"], "--queue 0: must be at least 1"),
        ([str(RUNS / "dense"), "--workers", "0"], "--workers 0: at least 1"),
        ([str(RUNS / "dense"), "--time-limit", "nan"], "--time-limit nan: must be a finite"),
        ([str(RUNS / "dense"), "--waits", "1"], "no option --waits"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments, "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("ds-seq: error: ") and words in line


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(RUNS / "dense")]) == 2
    assert "pip install 'ds_seq[serve]'" in capsys.readouterr().err
