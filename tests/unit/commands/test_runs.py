"""`ds-seq runs`: what has become of runs, from the ends of their logs."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ds_seq import files
from ds_seq.cli import main
from ds_seq.distributed import World
from ds_seq.errors import DivergedError
from ds_seq.names import METRICS_FILE
from ds_seq.training.provenance import record_start
from tests.fresh import words_printed_by
from tests.unit.reports.written_run import make_run


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    result: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return result


def test_every_state_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {name: make_run(tmp_path / "a" / name) for name in ("done", "halted", "nan", "bug")}
    runs["done"].end(20, "max_updates")
    runs["halted"].end(20, "signal")
    runs["nan"].end(20, "diverged", DivergedError("the training loss is nan\nlower the rate"))
    runs["bug"].end(20, "error", RuntimeError("shapes differ"))
    make_run(tmp_path / "killed")
    again = make_run(tmp_path / "again")
    again.end(20, "signal")
    time.sleep(2.1)  # a start is recorded in whole seconds
    record_start(tmp_path / "again", World(), 20, 100)
    make_run(tmp_path / "alive")
    with files.Lock(tmp_path / "alive" / files.LOCK_FILE, "x", "y"):
        found = {run["name"]: run for run in shown(capsys, tmp_path)}
    states = {name: (run["state"], run["error"]) for name, run in found.items()}
    killed = "ended without a message: killed, or its host was lost"
    assert states == {
        "a/done": ("finished", ""),
        "a/halted": ("stopped", ""),
        "a/nan": ("diverged", "the training loss is nan"),
        "a/bug": ("crashed", "shapes differ"),
        "killed": ("crashed", killed),
        "again": ("crashed", killed),
        "alive": ("running", ""),
    }
    for run in found.values():
        assert (run["update"], run["last_update"], run["tokens_per_second"]) == (20, 100, 2000.0)
        assert (run["best_by"], run["best_score"]) == ("bleu", 7.5)
        assert (run["eta_seconds"] is not None) == (run["name"] == "alive")


def test_a_table_is_sorted_filtered_and_compares_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "en-de", "optimizer.lr=1e-3", updates=30).end(30, "patience")
    make_run(tmp_path / "en-fr", "model.moe.num_experts=4", "criterion.name=model_and_base")
    make_run(tmp_path / "de-en", updates=10).end(10, "error", ValueError("no\x1b[31m"))
    options = [str(tmp_path), "--name", "en-*", "--sort", "update", "--descending", "--diff"]
    assert main(["runs", *options]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("en-de  finished  30/100  bleu 7.50") and second.startswith("en-fr ")
    assert "optimizer.lr" in head and first.endswith("  0.001") and "  0.0005  " in second
    assert "model.moe" in head and " null " in first and " a section " in second
    assert "num_experts" not in head and "run_dir" not in head

    assert [r["name"] for r in shown(capsys, tmp_path, "--state", "crashed")] == ["de-en", "en-fr"]
    assert main(["runs", str(tmp_path), "--state", "crashed"]) == 0
    assert r"no\x1b[31m" in capsys.readouterr().out


def test_damaged_folders_are_shown_and_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / METRICS_FILE).write_bytes(b'[1]\n\xff{"kind": "train"\n{"kind": 3, "upda')
    (run,) = shown(capsys, tmp_path)
    assert (run["state"], run["update"], run["last_update"]) == ("crashed", 0, None)
    assert main(["runs", str(tmp_path)]) == 0
    capsys.readouterr()
    for argv, words in {
        (tmp_path / "none",): "is no folder; give a run folder",
        (Path(__file__).parent,): "no run folder in it or below it",
        (tmp_path, "--name", "x*"): "--name x*: no run has such a name",
        (tmp_path, "--state", "runing"): "did you mean 'running'?",
    }.items():
        assert main(["runs", *map(str, argv)]) == 2
        assert words in capsys.readouterr().err.rstrip("\n").splitlines()[0]


def test_hundreds_of_long_runs_take_a_moment_and_no_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "0").end(20, "max_updates")
    with (tmp_path / "0" / METRICS_FILE).open("ab") as file:  # large records of many experts
        line = json.dumps({"kind": "train", "update": 30, "moe/layer0/load": [1 / 3] * 3000})
        file.write((line + "\n").encode() * 30)
    for number in range(1, 500):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
    began = time.process_time()
    assert len(shown(capsys, tmp_path)) == 500
    assert time.process_time() - began < 5.0
    code = f"from ds_seq.cli import main; main(['runs', {str(tmp_path / '0')!r}, '--json'])"
    loaded = words_printed_by(f"{code}\nimport sys\nprint(*sys.modules)")
    assert "ds_seq.commands.runs" in loaded
    assert not {"torch", "deepspeed", "numpy", "yaml"} & {*loaded}


def test_a_page_needs_runs_a_free_port_and_no_other_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a").end(20, "max_updates")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for argv, words in {
            (tmp_path / "none",): "is no folder; give a run folder",
            (Path(__file__).parent,): "no run folder in it or below it",
            (tmp_path, "--port", port): f"--port {port}: cannot be used",
            (tmp_path, "--json"): "--serve: has no use for --json",
            (tmp_path, "--port", "70000"): "--port",
        }.items():
            assert main(["runs", *map(str, argv), "--serve"]) == 2
            error = capsys.readouterr().err
            assert words in error and "Traceback" not in error


def test_runs_of_equal_names_in_two_folders_are_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        make_run(tmp_path / folder / "x").end(20, "max_updates")
    found = {run["name"] for run in shown(capsys, tmp_path / "a", tmp_path / "b")}
    assert found == {"x", (tmp_path / "b" / "x").as_posix()}
