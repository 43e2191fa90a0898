"""Downloads go on where they were, and are compared with checksums."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_seq.data import download
from ds_seq.data.download import SUMS_FILE, Archive, fetch
from ds_seq.errors import UserError
from tests.unit.data.mirror import Server, serving

CONTENT = random.Random(1).randbytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ARCHIVE = Archive("https://example.org/some/where/x.tgz", len(CONTENT), f"sha256:{SHA256}")
UNKNOWN = Archive(ARCHIVE.url)
AT_ONCE = (0.0, 0.0)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    path = tmp_path / "mirror/some/where/x.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return tmp_path / "mirror"


@pytest.fixture
def server(mirror: Path) -> Iterator[Server]:
    with serving(mirror) as server:
        yield server


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        path = fetch(ARCHIVE, tmp_path / "out", server.url, AT_ONCE)
        assert path.read_bytes() == CONTENT
    assert server.requests == [None]
    assert listed(tmp_path / "out") == [SUMS_FILE, "x.tgz"]
    assert (tmp_path / "out" / SUMS_FILE).read_text() == f"{SHA256}  x.tgz\n"


def test_a_broken_connection_goes_on_from_its_end(server: Server, tmp_path: Path) -> None:
    server.most_bytes = 40_000
    assert fetch(ARCHIVE, tmp_path, server.url, AT_ONCE).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=40000-", "bytes=80000-"]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_an_interrupted_run_is_continued(has_ranges: bool, server: Server, tmp_path: Path) -> None:
    server.most_bytes = 40_000
    with pytest.raises(UserError) as refused:
        fetch(ARCHIVE, tmp_path, server.url, ())
    message = str(refused.value)
    assert message.startswith(f"{server.url}/some/where/x.tgz: cannot be downloaded: ")
    assert "ended after 40,000 of 100,000 bytes; 40,000 bytes are kept" in message
    assert "\n" not in message and (tmp_path / "x.tgz.part").read_bytes() == CONTENT[:40_000]
    server.most_bytes, server.has_ranges = None, has_ranges
    assert fetch(ARCHIVE, tmp_path, server.url, ()).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=40000-"]
    assert listed(tmp_path) == [SUMS_FILE, "mirror", "x.tgz"]


def test_a_file_that_has_changed_is_not_appended_to(
    server: Server, mirror: Path, tmp_path: Path
) -> None:
    server.most_bytes = 40_000
    with pytest.raises(UserError):
        fetch(UNKNOWN, tmp_path, server.url, ())
    server.most_bytes = None
    other = CONTENT[::-1]
    (mirror / "some/where/x.tgz").write_bytes(other)
    assert fetch(UNKNOWN, tmp_path, server.url, ()).read_bytes() == other


def test_a_part_that_is_the_whole_file(server: Server, mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tgz.part").write_bytes(CONTENT)
    assert fetch(ARCHIVE, tmp_path, server.url, ()).read_bytes() == CONTENT
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.tgz.part").write_bytes(CONTENT + b"more")  # of another file
    assert fetch(ARCHIVE, other, server.url, AT_ONCE).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_another_checksum_is_refused_and_downloaded_anew(
    kind: str, server: Server, mirror: Path, tmp_path: Path
) -> None:
    digest = hashlib.new(kind, CONTENT).hexdigest()
    archive = Archive(ARCHIVE.url, checksum=f"{kind}:{digest}")
    path = mirror / "some/where/x.tgz"
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UserError) as refused:
        fetch(archive, tmp_path, server.url, ())
    message = str(refused.value)
    assert f"x.tgz: its {kind.upper()} is " in message and f"but {digest} is published" in message
    assert "\n" not in message and (tmp_path / "x.tgz.wrong").exists()
    assert not (tmp_path / "x.tgz").exists() and not (tmp_path / SUMS_FILE).exists()
    path.write_bytes(CONTENT)
    assert fetch(archive, tmp_path, server.url, ()).read_bytes() == CONTENT


def test_a_truncated_file_on_the_server(server: Server, mirror: Path, tmp_path: Path) -> None:
    (mirror / "some/where/x.tgz").write_bytes(CONTENT[:-10])
    with pytest.raises(UserError, match=r"has 99,990 bytes, but the published size is 100,000; it"):
        fetch(ARCHIVE, tmp_path, server.url, ())


def test_an_unknown_checksum_is_recorded_and_compared_afterwards(
    server: Server, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(UNKNOWN, tmp_path, server.url, ())
    assert f"no checksum is published; its SHA-256 {SHA256} is now in " in capsys.readouterr().out
    fetch(UNKNOWN, tmp_path, server.url, ())
    assert capsys.readouterr().out == ""
    (tmp_path / "x.tgz").unlink()
    (mirror / "some/where/x.tgz").write_bytes(b"other")
    with pytest.raises(UserError, match=rf"that of an earlier download, in .*, is {SHA256}; if"):
        fetch(UNKNOWN, tmp_path, server.url, ())


def test_a_local_folder_is_read_where_it_is(mirror: Path, tmp_path: Path) -> None:
    path = fetch(ARCHIVE, tmp_path / "out", str(mirror), ())
    assert path == mirror / "some/where/x.tgz" and listed(tmp_path / "out") == [SUMS_FILE]
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes, but the published size is 100,000"):
        fetch(ARCHIVE, tmp_path / "out", str(mirror), ())
    assert path.exists()  # it is not ours
    path.unlink()
    with pytest.raises(UserError, match=r"x\.tgz: no such file; the mirror \(WMT_MIRROR"):
        fetch(ARCHIVE, tmp_path / "out", str(mirror), ())


def test_a_server_that_does_not_have_it_is_asked_once(server: Server, tmp_path: Path) -> None:
    missing = Archive("https://example.org/no.tgz")
    with pytest.raises(UserError, match=r"no\.tgz: cannot be downloaded: the server answers 404"):
        fetch(missing, tmp_path, server.url, AT_ONCE)
    assert server.requests == [None]


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SECONDS", 1.0)
    with pytest.raises(UserError, match="cannot be downloaded: .*refused; WMT_MIRROR names"):
        fetch(ARCHIVE, tmp_path, "http://127.0.0.1:9", AT_ONCE)
