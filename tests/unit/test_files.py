"""Files are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.errors import UserError


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
