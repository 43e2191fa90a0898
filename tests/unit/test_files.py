"""Files are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.files import check_not_input


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_exception_leaves_nothing_new(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "out"
    if not is_folder:
        path.write_text("old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        if is_folder:
            temporary.mkdir()
            (temporary / "part").write_text("half")
        else:
            temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == (set() if is_folder else {"out"})
    assert is_folder or path.read_text() == "old"


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert names(path.parent) == {"a.json"}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/below: cannot be written: .+") as caught:
        files.write_text(tmp_path / "file" / "below", "text")
    assert "\n" not in str(caught.value)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.bin.99999.tmp").write_text("")
    (tmp_path / ".folder.99999.tmp").mkdir()
    (tmp_path / "a.bin").write_text("")
    files.remove_leftovers(tmp_path, "a.*")
    assert names(tmp_path) == {"a.bin", ".folder.99999.tmp"}
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == {"a.bin"}


def test_a_write_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    """But neither files of a process that runs, nor those of another host or of another file."""
    child = os.fork()
    if child == 0:
        with files.replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 1
    kept = {f".a.json.{os.getppid()}@{files.host()}.tmp", f".a.json.{child}@elsewhere.tmp"}
    kept.add(f".b.json.{child}@{files.host()}.tmp")
    for name in kept:
        (tmp_path / name).touch()
    files.write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == {"a.json", *kept}


def test_content_is_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a renamed file may be empty unless it was forced to the disk first."""
    events: list[str] = []
    replace, fsync = os.replace, os.fsync

    def record_fsync(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).split(".")[-1])
        fsync(descriptor)

    def record_replace(old: Path, new: Path) -> None:
        events.append("renamed")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with files.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x.part").write_text("")
        (temporary / "link").symlink_to("/nowhere")
    assert events == ["part", "tmp", "renamed", tmp_path.name]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    files.remove(tmp_path / "link")
    assert names(tmp_path) == {"data"}


@pytest.mark.parametrize(
    ("content", "recorded", "expected"),
    [
        (b"abc", b"abc", None),
        (b"abd", b"abc", "content"),
        (b"ab", b"abc", "size"),
        (None, b"abc", "missing"),
    ],
)
def test_a_file_is_compared_with_its_record(
    tmp_path: Path, content: bytes | None, recorded: bytes, expected: str | None
) -> None:
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    sha256 = hashlib.sha256(recorded).hexdigest()
    assert files.check_file(path, len(recorded), sha256) == expected
    if expected == "content":
        assert files.check_file(path, len(recorded), None) is None


def test_a_folder_disappears_whole(tmp_path: Path) -> None:
    (tmp_path / "work" / "deep").mkdir(parents=True)
    files.remove_folder(tmp_path / "work")
    assert names(tmp_path) == set()


def test_fingerprint_is_sha256(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert files.fingerprint(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_changed_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    files.write_json(path, {"beam": 5, "gone": 1})
    assert files.changed_settings(path, {"beam": 4, "new": 2}) == {
        "beam": 5,
        "gone": 1,
        "new": None,
    }
    assert files.changed_settings(path, {"beam": 5, "gone": 1}) == {}
    files.write_json(path, {"settings": {"beam": 5}, "notes": {"data": "x"}})
    assert files.changed_settings(path, {"beam": 4}, "settings") == {"beam": 5}
    for damaged in ("{", "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(UserError, match="damaged; remove"):
            files.changed_settings(path, {}, "settings")


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_an_input_is_not_overwritten(tmp_path: Path, link: str | None) -> None:
    source, output = tmp_path / "source", tmp_path / "source"
    source.write_text("x")
    if link is not None:
        output = tmp_path / "other"
        vars(Path)[link](output, source)
    with pytest.raises(UserError, match=f"{output.name}: is also the input {source}"):
        check_not_input(output, [None, tmp_path / "missing", source])
    check_not_input(tmp_path / "new", [source])


def test_models_and_data_in_an_input_folder_are_not_overwritten(tmp_path: Path) -> None:
    for name in ("vocab.model", "text.de"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"vocab\.model: belongs to the input"):
        check_not_input(tmp_path / "vocab.model", [tmp_path])
    for name in ("text.de", "new.model"):
        check_not_input(tmp_path / name, [tmp_path])
