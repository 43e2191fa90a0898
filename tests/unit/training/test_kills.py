"""A save that is killed at any of its steps, and a folder that a copy has damaged, resume."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ds_seq.errors import UserError
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.checkpoint_folder import (
    candidates,
    delete_all,
    first_sound,
    own_checkpoints,
    read_index,
    without_advice,
)
from ds_seq.weights.source import check_checkpoint
from tests.faults import kills
from tests.unit.training.toy import open_store, resume, save, save_in_background


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that the kernel has; waiting for the disk takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


Save = Callable[[Path, int, float], None]
SAVES: dict[str, tuple[Save, int, float]] = {
    "a new checkpoint": (save, 3, 1.0),
    "a second save of the same": (save, 2, 5.0),
    "in the background": (save_in_background, 3, 1.0),
    "a best one loses its state": (lambda *which: save(*which, drops_state=True), 3, 1.0),
}


SAMPLE = range(1, 1000, 5)
"""Moments of kills; a test of all of them is slow."""


@pytest.mark.parametrize("moments", [SAMPLE, pytest.param(range(1000), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("work", "update", "score"), SAVES.values(), ids=SAVES)
def test_a_save_that_is_killed_at_any_step_resumes(
    tmp_path: Path, work: Save, update: int, score: float, moments: range
) -> None:
    before, run = tmp_path / "before", tmp_path / "run"
    save(before, 1, 9.0)
    save(before, 2)
    shutil.copytree(before, run)
    seen = set()
    for steps in kills(lambda: work(run, update, score), moments):
        found = resume(run)
        assert found >= 2, f"killed after {steps} operations"
        seen.add(found)
        assert find_checkpoint(run, "best").name == "update_00000001"
        assert check_checkpoint(find_checkpoint(run, "best"))
        save(run, 4)  # it goes on as ever, and nothing is left of the kill
        left = ["update_00000001", f"update_{found:08d}", "update_00000004"]
        assert names(run) == sorted({*left, "index.json"})
        assert not list(run.rglob("*.tmp")) and not list(run.rglob("written.*"))
        shutil.rmtree(run)
        shutil.copytree(before, run)
    assert seen == {2, update} and steps > 20


def test_the_first_save_that_is_killed_leaves_a_run_to_start_over(tmp_path: Path) -> None:
    seen = []
    for _ in kills(lambda: save(tmp_path, 1), range(0, 1000, 3)):
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


def test_a_flipped_bit_anywhere_in_the_index_is_noticed(tmp_path: Path) -> None:
    for update, score in ((1, 9.0), (2, 3.0)):
        save(tmp_path, update, score)
    folder = tmp_path / "checkpoints"
    index, whole = folder / "index.json", read_index(folder)
    content = index.read_bytes()
    assert whole is not None
    for place, value in list(enumerate(content))[::3]:
        flipped = bytes([value ^ 1 << place % 8])
        index.write_bytes(content[:place] + flipped + content[place + 1 :])
        assert read_index(folder) is None, place
    index.write_text(json.dumps(whole))  # as earlier versions wrote it
    assert read_index(folder) == whole


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


def test_a_best_checkpoint_without_its_state_is_not_resumed_from(tmp_path: Path) -> None:
    for update, score in ((1, 9.0), (2, 1.0), (3, 1.0), (4, 1.0)):
        save(tmp_path, update, score, drops_state=True)
    assert names(tmp_path) == [
        "index.json",
        "update_00000001",
        "update_00000003",
        "update_00000004",
    ]
    best = find_checkpoint(tmp_path, "best")
    assert sorted(path.name for path in best.iterdir()) == [
        "checkpoint.json",
        "weights.0.safetensors",
    ]
    assert check_checkpoint(best)
    found, problems = first_sound(candidates(tmp_path, "best"))
    assert found is None and problems == [
        f"{best}: holds the weights but no optimizer state (train.keep_best_state: false); resume "
        "from one with it (update_00000003, update_00000004), or give its run to train.init_from"
    ]
    assert resume(tmp_path) == 4
    save(tmp_path, 5, 99.0, drops_state=True)  # the new best one is also the last one: whole
    assert resume(tmp_path, "best") == 5


def test_a_checkpoint_on_another_disk_keeps_its_state(tmp_path: Path) -> None:
    save(tmp_path, 1, 9.0)
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    (folder / "update_00000001").rename(elsewhere)
    (folder / "update_00000001").symlink_to(elsewhere)
    for update in (2, 3):
        save(tmp_path, update, 1.0, drops_state=True)
    assert resume(tmp_path, "best") == 1
