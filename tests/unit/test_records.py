"""Files of a checkpoint, a data folder and a cache with odd values: one line, no traceback."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_seq.data.shards import ShardReader
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError, escaped
from ds_seq.records import read_limited
from ds_seq.runs.average import listed_models
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.resume_state import check_resumable
from ds_seq.weights.meta import read_index
from ds_seq.weights.source import TensorFolder
from tests.compat.made import ARTEFACTS

ODD: tuple[Any, ...] = (None, True, -1, 10**30, float("nan"), "../x", "\ud800", [], [{}])
RAW = (b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\0")
CHECKPOINT = Path("runs/dense/checkpoints/update_00000250")


def shards(folder: Path) -> None:
    reader = ShardReader(folder / "data", "train")
    reader.gather(np.arange(len(reader)))


def unlisted_shards(folder: Path) -> None:
    """Read shards whose manifest lists none of their files."""
    path = folder / "data" / "train.manifest.json"
    original = path.read_text()
    path.write_text(json.dumps({**json.loads(original), "files": {}}))
    try:
        shards(folder)
    finally:
        path.write_text(original)


def cache(folder: Path) -> None:
    source = ShardReader(ARTEFACTS / "data", "train")
    found = TeacherCache(folder / "cache", "train", source)
    found.gather(np.arange(len(source)))


def checkpoint(folder: Path) -> None:
    TensorFolder(folder / CHECKPOINT, "weights")
    check_resumable(folder / CHECKPOINT)


def index(folder: Path) -> None:
    TensorFolder(find_checkpoint(folder / "runs" / "dense", "last"), "weights")
    find_checkpoint(folder / "runs" / "dense", "best")


FILES: dict[str, Callable[[Path], None]] = {
    f"{CHECKPOINT}/checkpoint.json": checkpoint,
    "runs/dense/checkpoints/index.json": index,
    "data/train.manifest.json": shards,
    "cache/train.teacher.json": cache,
}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of old artefacts, which each test leaves as it was."""
    return Path(shutil.copytree(ARTEFACTS, tmp_path_factory.mktemp("records") / "copy"))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*at, key))


def mutants(value: Any) -> Iterator[bytes]:
    """Yield the value with each place replaced by something odd, dropped or renamed."""
    for place in places(value):
        for odd in ODD if place else ODD[:1]:
            yield json.dumps(_changed(value, place, lambda holder, key, odd=odd: odd)).encode()
        if place and isinstance(place[-1], str):
            yield json.dumps(_changed(value, place, None)).encode()


def _changed(value: Any, place: tuple[Any, ...], new: Callable[..., Any] | None) -> Any:
    if not place:
        return None
    value = copy.deepcopy(value)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if new is None:
        holder["..\n/" + place[-1]] = holder.pop(place[-1])
    else:
        holder[place[-1]] = new(holder, place[-1])
    return value


@pytest.mark.parametrize("name", FILES)
def test_odd_values_are_one_line(artefacts: Path, name: str) -> None:
    file, read = artefacts / name, FILES[name]
    original = file.read_bytes()
    refused = 0
    read(artefacts)
    for content in (*mutants(json.loads(original)), *RAW):
        file.write_bytes(content)
        try:
            read(artefacts)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 800, content[:300]
    file.write_bytes(original)
    assert refused > 50


@pytest.mark.parametrize("name", ["../data/vocab.model", "/etc/hostname", "..", "a/b", "a\0b", ""])
def test_names_stay_in_their_folder(artefacts: Path, name: str) -> None:
    for file in (f"{CHECKPOINT}/checkpoint.json", "data/train.manifest.json"):
        path = artefacts / file
        original = path.read_text()
        content = json.loads(original)
        content["files"][name] = next(iter(content["files"].values()))
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="is damaged .*(plain name of a file|control char)"):
            FILES[file](artefacts)
        path.write_text(original)
    index_file = artefacts / "runs/dense/checkpoints/index.json"
    original = index_file.read_text()
    index_file.write_text(json.dumps({"last": [{"name": name}], "best": []}))
    for read in (index, lambda folder: listed_models(folder / "runs" / "dense", "last", 1)):
        with pytest.raises(UserError, match="is damaged"):
            read(artefacts)
    index_file.write_text(original)


def test_links_stay_in_their_folder(artefacts: Path, tmp_path: Path) -> None:
    for name, read in (
        (CHECKPOINT / "weights.0.safetensors", checkpoint),
        (Path("data/train.0000.src.bin"), shards),
        (Path("data/train.0000.src.bin"), unlisted_shards),
        (Path("cache/train.teacher.00000.bin"), cache),
    ):
        file, elsewhere = artefacts / name, tmp_path / name.name
        shutil.move(file, elsewhere)
        file.symlink_to(elsewhere)
        with pytest.raises(UserError, match="is a link to .*, outside its folder"):
            read(artefacts)
        file.unlink()
        shutil.move(elsewhere, file)
    folder = tmp_path / "whole"
    folder.symlink_to(artefacts / "data")
    assert len(ShardReader(folder, "train")) > 0, "a whole folder may be a link"


@contextmanager
def replaced(file: Path, content: bytes) -> Iterator[None]:
    """Replace a file of shards or of a cache for a while, and its checksum if there is one."""
    manifest = file.with_name("train.manifest.json")
    before = {path: path.read_bytes() for path in (file, manifest) if path.is_file()}
    old, new = (sha256(data).hexdigest().encode() for data in (before[file], content))
    try:
        file.write_bytes(content)
        if manifest in before:
            assert old in before[manifest]
            manifest.write_bytes(before[manifest].replace(old, new))
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


@pytest.mark.parametrize("value", [-1, 10**15, -(2**63)])
@pytest.mark.parametrize("entry", [0, 1, -1])
def test_offsets_that_lead_elsewhere(
    artefacts: Path, entry: int, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = artefacts / "data" / "train.0000.src.idx"
    offsets = np.frombuffer(file.read_bytes(), "<i8").copy()
    offsets[entry] = value
    damaged = pytest.raises(UserError, match=r"train\.0000\.src\.idx: is damaged")
    with replaced(file, offsets.tobytes()), damaged:
        shards(artefacts)


def test_ids_that_no_vocabulary_has(artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, read in (("data/train.0000.src", shards), ("cache/train.teacher.00000", cache)):
        file = artefacts / f"{name}.bin"
        damaged = pytest.raises(UserError, match="is damaged .token 65,535 of a vocabulary of 200")
        with replaced(file, b"\xff\xff" + file.read_bytes()[2:]), damaged:
            read(artefacts)


def test_a_file_without_an_end_is_not_read_whole() -> None:
    with pytest.raises(UserError, match="/dev/zero: is larger than 1,000 bytes"):
        read_limited(Path("/dev/zero"), 1000, pipes=True)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(UserError, match=r"index\.json: is a pipe or a device"):
        read_index(tmp_path)


def test_messages_cannot_command_a_terminal() -> None:
    assert escaped("a\x1b[31mb\u202ec") == "a\\x1b[31mb\\u202ec"
    assert escaped("größe 我们") == "größe 我们"
