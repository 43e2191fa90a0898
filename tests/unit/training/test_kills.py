"""A save that is killed at any of its steps, and a folder that a copy has damaged, resume."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ds_seq.errors import UserError
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.checkpoint_folder import (
    candidates,
    delete_all,
    first_sound,
    own_checkpoints,
    without_advice,
)
from ds_seq.training.restore import restore
from ds_seq.weights.fill import load_weights
from tests.values import progress_at

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
_count: list[int] = []  # in a forked process: file operations until it is killed


def _kill_at_zero(event: str, arguments: tuple[Any, ...]) -> None:
    """Die just before an operation that changes a file, after as many of them as were allowed."""
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if _count and (event in _CHANGES or is_write):
        _count[0] -= 1
        if _count[0] < 0:
            os._exit(9)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that the kernel has; waiting for the disk takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Toy:
    """What a store needs of an engine: a model, Adam, a schedule. Weights are the update's."""

    def __init__(self, update: int = 0) -> None:
        self.module = nn.Linear(2, 2)
        self.adam = torch.optim.Adam(self.module.parameters())
        self.expert_parallel, self.zero_stage = 1, 0
        self.schedule = SimpleNamespace(updates=update, set_updates=lambda n: None)
        self.deepspeed = SimpleNamespace(
            zero_optimization_stage=lambda: 0,
            optimizer=self.adam,
            basic_optimizer=self.adam,
            module=self.module,
        )
        for parameter in self.module.parameters():
            nn.init.constant_(parameter, update)
            if update:
                moments = {key: torch.full_like(parameter, update) for key in _MOMENTS}
                self.adam.state[parameter] = {"step": torch.tensor(float(update)), **moments}

    def loss_scaler_state(self) -> dict[str, Any]:
        return {}

    def load_loss_scaler_state(self, state: dict[str, Any]) -> None:
        assert state == {}


_MOMENTS = ("exp_avg", "exp_avg_sq")


def open_store(run: Path, keep_last: int = 2, keep_best: int = 1) -> CheckpointStore:
    return CheckpointStore(run / "checkpoints", keep_last, keep_best, True, figure="bleu")


def save(run: Path, update: int, score: float | None = None, **keep: int) -> None:
    engine: Any = Toy(update)
    open_store(run, **keep).save(engine, update, progress_at(update), score)


def resume(run: Path, which: str | None = None) -> int:
    """Do what a training does to resume; return the update after checking the whole state."""
    start, problems = first_sound(candidates(run, which))
    assert start is not None, problems
    engine: Any = Toy()
    load_weights(engine.module, start, checked=True)
    update = int(restore(engine, start, checked=True)["update"])
    open_store(run).continue_after(update)
    for parameter in engine.module.parameters():
        assert torch.equal(parameter, torch.full_like(parameter, update))
        for key in _MOMENTS:
            assert torch.equal(
                engine.adam.state[parameter][key], torch.full_like(parameter, update)
            )
    return update


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def kills(work: Callable[[], None]) -> Iterator[int]:
    """Fork processes that do the work and are killed after 0, 1, 2, ... operations."""
    for allowed in range(1000):
        child = os.fork()
        if child == 0:
            sys.addaudithook(_kill_at_zero)
            _count.append(allowed)
            try:
                work()
            except BaseException:  # noqa: BLE001 - the parent only sees the exit code
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        yield allowed
        if code == 0:
            return


@pytest.mark.parametrize(
    ("update", "score", "least"),
    [(3, 1.0, 2), (2, 5.0, 2)],
    ids=["a new checkpoint", "a second save of the same"],
)
def test_a_save_that_is_killed_at_any_step_resumes(
    tmp_path: Path, update: int, score: float, least: int
) -> None:
    before, run = tmp_path / "before", tmp_path / "run"
    save(before, 1, 9.0)
    save(before, 2)
    shutil.copytree(before, run)
    seen = set()
    for steps in kills(lambda: save(run, update, score)):
        found = resume(run)
        assert found >= least, f"killed after {steps} operations"
        seen.add(found)
        assert find_checkpoint(run, "best").name == "update_00000001"
        save(run, 4)  # it goes on as ever, and nothing is left of the kill
        left = ["update_00000001", f"update_{found:08d}", "update_00000004"]
        assert names(run) == sorted({*left, "index.json"})
        shutil.rmtree(run)
        shutil.copytree(before, run)
    assert seen == {2, update} and steps > 10


def test_the_first_save_that_is_killed_leaves_a_run_to_start_over(tmp_path: Path) -> None:
    seen = []
    for _ in kills(lambda: save(tmp_path, 1)):
        seen.append([path.name for path in candidates(tmp_path, None)])
        if seen[-1]:
            assert resume(tmp_path) == 1
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    assert seen[0] == [] and seen[-1] == ["update_00000001"] and len(seen) > 5


@pytest.mark.parametrize(
    "content",
    [None, "", "{", '{"last": 1}', '{"last": [{}], "best": []}', '{"last": [], "best": [1]}'],
)
def test_a_lost_index_is_made_again_from_the_folders(tmp_path: Path, content: str | None) -> None:
    for update, score in ((1, 3.0), (2, 9.0), (3, 5.0), (4, None)):
        save(tmp_path, update, score, keep_last=2)
    index = tmp_path / "checkpoints" / "index.json"
    whole = json.loads(index.read_text())
    index.unlink()
    if content is not None:
        index.write_text(content)
    with pytest.raises(UserError, match=r"checkpoints themselves .update_00000002, .* --resume"):
        find_checkpoint(tmp_path, "best")
    messages = open_store(tmp_path).continue_after(4)
    assert len(messages) == 1 and "index.json: was missing or damaged; made again" in messages[0]
    assert json.loads(index.read_text())["last"] == whole["last"]
    assert json.loads(index.read_text())["best"][0] == whole["best"][0]
    assert find_checkpoint(tmp_path, "best").name == "update_00000002"


def test_checkpoints_without_a_known_score_are_never_deleted(tmp_path: Path) -> None:
    for update in (1, 2, 3):
        save(tmp_path, update, float(-update), keep_last=3)
        meta = tmp_path / "checkpoints" / f"update_{update:08d}" / "checkpoint.json"
        content = json.loads(meta.read_text())
        for key in ("score", "sha256"):  # as earlier versions wrote it
            del content[key]
        meta.write_text(json.dumps(content))
    (tmp_path / "checkpoints" / "index.json").unlink()
    assert resume(tmp_path) == 3
    for update in (4, 5):
        save(tmp_path, update, keep_last=1)
    expected = ["index.json", "update_00000001", "update_00000002", "update_00000005"]
    assert names(tmp_path) == expected


def test_what_the_user_has_put_there_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder, outside = tmp_path / "checkpoints", tmp_path / "outside"
    shutil.copytree(folder / "update_00000001", folder / "update_00000001_mine")
    shutil.copytree(folder / "update_00000001", folder / "update_best")
    shutil.copytree(folder / "update_00000001", outside)
    (folder / "update_00000000").symlink_to(outside)
    (folder / "update_link").symlink_to(outside)
    (folder / "update_notes.txt").write_text("")
    shutil.copytree(folder / "update_00000001", folder / "update_1_mine.incomplete")
    (folder / "update_mine.replaced").mkdir()
    (folder / ".notes.tmp").write_text("")
    kept = set(names(tmp_path)) - {"update_00000001"}
    save(tmp_path, 2, keep_last=1)
    (folder / "update_00000002").rename(outside / "moved")  # to another disk
    (folder / "update_00000002").symlink_to(outside / "moved")
    save(tmp_path, 3, keep_last=1)
    assert set(names(tmp_path)) == {*kept, "update_00000002", "update_00000003"}
    assert len(list(outside.iterdir())) == 4
    assert resume(tmp_path) == 3


def test_a_checkpoint_on_another_disk_is_resumed_from_and_never_changed(tmp_path: Path) -> None:
    for update in (1, 2):
        save(tmp_path, update)
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    (folder / "update_00000002").rename(elsewhere)
    (folder / "update_00000002").symlink_to(elsewhere)
    before = {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()}
    assert resume(tmp_path) == 2
    assert resume(tmp_path, "update_00000001") == 1
    assert (folder / "update_00000002.aside").is_symlink()
    (folder / "update_00000002.aside").rename(folder / "update_00000002")
    for update in (3, 4):
        save(tmp_path, update, keep_last=1)
    assert names(tmp_path) == ["index.json", "update_00000002", "update_00000004"]
    assert {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()} == before
    shutil.rmtree(folder / "update_00000004")
    elsewhere.rename(tmp_path / "unmounted")
    found, problems = first_sound(candidates(tmp_path, None))
    assert found is None and "update_00000002: no checkpoint here" in problems[0]


def test_overwriting_deletes_what_training_has_written(tmp_path: Path) -> None:
    for update in (1, 2):
        save(tmp_path, update)
    assert resume(tmp_path, "update_00000001") == 1
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "other disk"
    shutil.copytree(folder, elsewhere)
    delete_all(folder)
    assert not folder.exists()
    folder.symlink_to(elsewhere)
    (elsewhere / "update_best").mkdir()
    delete_all(folder)
    assert folder.is_symlink() and names(tmp_path) == ["update_best"]


def damage_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_in(path: Path, number: str) -> None:
    text = path.read_text()
    assert text.count(number) == 1
    path.write_text(text.replace(number, f"{number}0"))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "bit of a weight": lambda folder: damage_a_bit(folder / "weights.0.safetensors"),
    "bit of the optimizer": lambda folder: damage_a_bit(folder / "optimizer.0.safetensors"),
    "lost file": lambda folder: (folder / "optimizer.0.safetensors").unlink(),
    "truncated file": lambda folder: os.truncate(folder / "weights.0.safetensors", 100),
    "lost meta": lambda folder: (folder / "checkpoint.json").unlink(),
    "damaged meta": lambda folder: (folder / "checkpoint.json").write_text("{"),  # type: ignore[dict-item, return-value]
    "digit of the meta": lambda folder: replace_in(folder / "checkpoint.json", '"epoch": 1'),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_falls_back_to_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for update in (1, 2):
        save(tmp_path, update)
    damage(tmp_path / "checkpoints" / "update_00000002")
    found, problems = first_sound(candidates(tmp_path, None))
    assert found is not None and found.name == "update_00000001"
    assert len(problems) == 1 and "update_00000002" in problems[0]
    assert first_sound(candidates(tmp_path, "last"))[0] is None  # named, so no other is taken
    messages = open_store(tmp_path).continue_after(1)
    assert any("update_00000002: kept as update_00000002.aside" in line for line in messages)
    assert resume(tmp_path) == 1
    save(tmp_path, 2)
    assert "update_00000002.aside" in names(tmp_path)
    assert [path.name for path in own_checkpoints(tmp_path / "checkpoints")][-1] == (
        "update_00000002"
    )


def test_a_problem_without_its_advice() -> None:
    assert without_advice("a: is 1; or 2; use another checkpoint") == "a: is 1; or 2"
    assert without_advice("a: cannot be read: no medium") == "a: cannot be read: no medium"


def test_going_back_keeps_the_later_checkpoints(tmp_path: Path) -> None:
    for update in (1, 2, 3):
        save(tmp_path, update, keep_last=3)
    assert resume(tmp_path, "update_00000001") == 1
    assert resume(tmp_path) == 1  # not again the later ones
    assert resume(tmp_path, "update_00000003.aside") == 3


@pytest.mark.parametrize("is_old", [False, True])
def test_a_missing_tensor_of_the_optimizer_is_an_error(tmp_path: Path, is_old: bool) -> None:
    save(tmp_path, 2)
    folder = tmp_path / "checkpoints" / "update_00000002"
    path, meta = folder / "optimizer.0.safetensors", folder / "checkpoint.json"
    tensors = load_file(path)
    del tensors["exp_avg/weight"]
    save_file(tensors, path)
    content = json.loads(meta.read_text())
    content["files"][path.name] = path.stat().st_size
    del content["sha256"]
    if is_old:
        del content["optimizer"]["without_state"]
    meta.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has no tensor 'exp_avg/weight'"):
        resume(tmp_path)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ds_seq.training.background.save_tensors", fail)
    with pytest.raises(UserError, match=r"weights\.0\.safetensors: cannot be written: No space"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["index.json", "update_00000001"]


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    save(tmp_path, 1)
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
