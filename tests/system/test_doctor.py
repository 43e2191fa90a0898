"""`ds-seq doctor` on real ranks: what it measures, and whom it names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ds_seq import distributed
from ds_seq.cli import main
from ds_seq.reports.doctor.findings import Finding, merged, shown_ranks, table, worst
from ds_seq.reports.doctor.ranks import NoAnswer, RankChecks
from tests.distributed.harness import run_distributed
from tests.system.commands import deepspeed, run
from tests.system.forked import command


def report(text: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(text)["findings"]:
        rows.setdefault(row["check"], []).append(row)
    return rows


def test_two_ranks_are_checked_together(tmp_path: Path) -> None:
    first, second = command("doctor", "--folder", tmp_path, "--json", ranks=2)
    assert second.check().out == ""
    rows = report(first.check().out)
    for name in ("all-reduce", "all-gather", "all-to-all"):
        (row,) = rows[f"gloo {name}"]
        assert row["status"] == "ok" and row["ranks"] == [0, 1] and "8 MiB" in row["text"]
    assert [row["text"] for row in rows["precision"]] == ["fp32", "bf16", "fp16"]
    for row in rows["precision"]:
        assert row["status"] == "ok" and 0 < row["numbers"]["error"][0] < 0.01
    assert rows["disk"][0]["ranks"] == [0] and rows["clocks"][0]["status"] == "ok"
    assert not list(tmp_path.iterdir())


def _silent_rank() -> tuple[str, float]:
    world, store = distributed.discover(os.environ), distributed.meeting_store()
    assert store is not None
    checks = RankChecks(world, store, patience=1.0, findings=[])
    checks.meet("the first step")
    if world.rank == 1:
        time.sleep(3.0)  # stopped, or busy with something else
        return "", 0.0
    began = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        checks.clocks()
    return str(caught.value), time.monotonic() - began


def test_a_rank_that_does_not_answer_is_named() -> None:
    message, seconds = run_distributed(_silent_rank, 2)[0]
    assert message == "no answer from rank 1 before the clocks are compared" and seconds < 2.5


def test_a_rank_that_does_not_come_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    port = distributed.free_port()
    for name, value in {**environ, "MASTER_PORT": str(port), "DS_SEQ_JOIN_SECONDS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--folder", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  ranks" in printed and "rank(s) 1 of 2 did not join" in printed


def test_a_driver_without_gpus_and_a_disk_that_cannot_be_written_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 999.1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["doctor", "--folder", "/proc/nothing", "--json"]) == 1
    rows = report(capsys.readouterr().out)
    assert rows["CUDA"][0]["status"] == "FAIL" and "driver 999.1" in rows["CUDA"][0]["text"]
    assert rows["disk"][0]["status"] == "FAIL" and rows["disk"][0]["fix"]


def test_findings_of_many_ranks_share_lines() -> None:
    def of(rank: int) -> list[Finding]:
        fast = Finding("disk", "ok", "/scratch", numbers=(("MB/s", 100.0 + rank),))
        return [fast, Finding("files", "warn" if rank == 5 else "ok", "1024", "raise it")]

    rows = merged({rank: of(rank) for rank in (*range(4), 5)})
    first, second, _, third, _ = table(rows, 6).splitlines()
    assert first == "ok    disk   ranks 0-3, 5: /scratch, MB/s 100 to 105"
    assert second.startswith("ok    files  ranks 0-3: ") and "rank 5: 1024" in third
    assert worst(rows) == "warn" and shown_ranks([7]) == "rank 7"


@pytest.mark.slow
def test_it_runs_under_the_deepspeed_launcher(tmp_path: Path) -> None:
    arguments = deepspeed("train")[:-1]
    finished = run([*arguments, "--module", "ds_seq", "doctor", "--json"], timeout=90)
    assert report(finished.check().out)["gloo all-to-all"][0]["ranks"] == [0, 1]
