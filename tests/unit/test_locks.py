"""One process at a time uses a run, a data folder, a cache or an output."""

from __future__ import annotations

import gc
import json
import os
import re
import time
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.files import locks


def lock(path: Path) -> files.Lock:
    return files.Lock(path, path.parent, "wait for it")


def record(path: Path, **changes: object) -> None:
    """Leave a lock of a process that is not this one."""
    with lock(path):
        content = {**json.loads(path.read_text()), **changes}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_only_one_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with lock(path):
        message = rf"run: another process is writing to it \(process {os.getpid()} on .* since \d+-"
        with pytest.raises(UserError, match=rf"{message}.*\); wait for it$"):
            lock(path)
        assert sorted(item.name for item in path.parent.iterdir()) == [".lock"]
    assert list(tmp_path.iterdir()) == []  # a folder in which nothing was written
    lock(path).release()


def test_a_forgotten_lock_is_released(tmp_path: Path) -> None:
    held = lock(tmp_path / ".lock")
    del held
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    child = os.fork()
    if child == 0:
        held = lock(path)
        os._exit(0 if held else 1)  # without cleaning up
    os.waitpid(child, 0)
    assert json.loads(path.read_text())["pid"] == child
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("job", "is_taken"),
    [(["71", 0], True), (["71", 1], False), (["70", 0], False), ("71", False), (None, False)],
)
def test_a_job_that_is_started_again_takes_the_lock_of_a_lost_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: object, is_taken: bool
) -> None:
    path = tmp_path / ".lock"
    record(path, place=["another", "", ""], job=job)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if is_taken:
        with lock(path):
            assert json.loads(path.read_text())["job"] == ["71", 1]
    else:
        with pytest.raises(UserError, match="process .* on another since"):
            lock(path)


def test_a_process_number_that_is_used_again_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    record(path, started="0")
    lock(path).release()


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', None])
def test_a_lock_from_elsewhere_is_alive_while_it_is_renewed(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / ".lock"
    if content is None:
        record(path, place=["other", "boot", "pid:[1]"])
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"wait 3 minutes, or remove {path}")):
        lock(path)
    old = time.time() - locks._SILENT - 1
    os.utime(path, (old, old))
    lock(path).release()


def test_a_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_RENEWED", 0.01)
    path = tmp_path / ".lock"
    with lock(path):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_a_file_system_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lock(tmp_path / ".lock"), pytest.raises(UserError, match="another process"):
        lock(tmp_path / ".lock")
    record(tmp_path / ".lock", started="0")
    lock(tmp_path / ".lock").release()


def test_of_two_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    """One must not remove the lock that the other has put in the place of the stale one."""
    path = tmp_path / ".lock"
    record(path, started="0")
    stale = json.loads(path.read_text())
    with lock(path):
        locks._take_away(path, stale)  # the second has read the stale lock before the first took it
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="another process"):
            lock(path)
