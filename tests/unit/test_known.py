"""What one command remembers of files: each is read once, and never believed after a change."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.files import known
from ds_seq.text import scan as scanning
from ds_seq.text.scan import scan_text, text_fingerprint

_OLD_NS = 3 * known._RECENT_NS


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that was written some time ago."""
    path = tmp_path / "file"
    path.write_bytes(b"first\nsecond")
    while time.time_ns() - path.stat().st_ctime_ns < _OLD_NS:
        time.sleep(0.05)
    return path


def test_a_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.remembering():
        found = scan_text(path)
        assert found.sha256 == _sha256(path) and found.lines == 2 and found.offsets == (0, 12)
        monkeypatch.setattr(scanning, "Scanner", None)  # nothing can be scanned from here on
        monkeypatch.setattr(hashlib, "sha256", None)
        assert scan_text(path) is found
        assert text_fingerprint(path) == files.fingerprint(path) == found.sha256
        with files.remembering():  # as a function that is called inside another
            assert scan_text(path) is found
    with pytest.raises(TypeError):
        scan_text(path)


@pytest.mark.parametrize("size", [12, 13])
def test_a_changed_file_is_read_again(path: Path, size: int) -> None:
    with files.remembering():
        before = text_fingerprint(path)
        path.write_bytes(b"x" * size)
        assert before != text_fingerprint(path) == files.fingerprint(path) == _sha256(path)
        other = path.with_name("other")
        other.write_bytes(b"y" * size)
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        other.replace(path)  # another file of the same size and time
        assert text_fingerprint(path) == _sha256(path)


def test_a_file_that_changes_right_now_is_not_remembered(path: Path) -> None:
    path.write_bytes(b"new content!")
    with files.remembering():
        text_fingerprint(path)
        assert files.recall(path, files.SHA256) is None


def test_nothing_is_remembered_outside(path: Path) -> None:
    files.remember(path, {files.SHA256: "wrong"})
    assert files.fingerprint(path) == _sha256(path)
