"""The unfinished output on disk: survives a kill, refuses what does not belong to it."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.generation.partial import Line, MemoryStore, PartialOutput, Settings
from ds_seq.generation.pipeline import Reading, translate_share
from ds_seq.generation.translate import ALONE, SearchPlan
from ds_seq.text.lines import write_lines

SETTINGS: Settings = {"input": "abc", "beam": 5, "length-penalty": 0.7}
LINES = [
    Line(3, "ä \u2028 b", "ä \u2028 b", False),
    Line(0, "", "", True),
    Line(7, "x", "S-7\tx\nH-7\t-0.1\tx", False),
    Line(2, "\ud800", "\ud800", False, True),
]


def begun(folder: Path, *batches: list[Line]) -> PartialOutput:
    partial = PartialOutput(folder / "out")
    assert partial.begin(SETTINGS, False) == []
    for rank, batch in enumerate(batches):
        store = partial.store(rank % 2)
        store.add(batch)
        store.gather()
    return partial


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    partial = begun(tmp_path, LINES[:2], LINES[2:3], LINES[3:])
    assert sorted(partial.lines()) == sorted(LINES)
    assert sorted(partial.begin(SETTINGS, True)) == [0, 2, 3, 7]
    assert partial.folder == tmp_path / "out.partial"
    partial.remove()
    assert list(tmp_path.iterdir()) == []


def test_stores_give_back_what_they_got(tmp_path: Path) -> None:
    partial = begun(tmp_path)
    for store in (MemoryStore(), partial.store(0)):
        store.add(LINES[:1])
        store.add(LINES[1:])
        found = store.gather()
        assert found is not None and list(found) == LINES


@pytest.mark.parametrize("damage", ["cut", "zeros", "other"])
def test_a_record_that_is_not_whole_is_dropped(tmp_path: Path, damage: str) -> None:
    """Whatever is left of the last record, those before it stay and new ones follow."""
    journal = tmp_path / "out.partial" / "journal.00000"
    begun(tmp_path, LINES[:2])
    whole = journal.read_bytes()
    store = PartialOutput(tmp_path / "out").store(0)
    store.add(LINES[2:3])
    store.gather()
    both = journal.read_bytes()
    for end in range(len(whole), len(both) - 1):
        left = len(both) - end
        tail = {"cut": b"", "zeros": b"\0" * left, "other": b"x" * (left - 1) + b"\n"}[damage]
        journal.write_bytes(both[:end] + tail)
        partial = PartialOutput(tmp_path / "out")
        assert partial.begin(SETTINGS, True) == [3, 0]
        assert journal.read_bytes() == whole
    store = partial.store(0)
    store.add(LINES[3:])
    store.gather()
    assert [line.number for line in partial.lines()] == [3, 0, 2]


@pytest.mark.parametrize(
    "body",
    ["[", "3", "[[1]]", '[["1", "a", null, false, false]]', '[[-1, "a", null, false, false]]'],
)
def test_damage_in_the_middle_costs_one_batch(tmp_path: Path, body: str) -> None:
    """Also a record of other values, whose checksum is right."""
    begun(tmp_path, LINES[:2])
    journal = tmp_path / "out.partial" / "journal.00000"
    record = journal.read_bytes()
    odd = f"{zlib.crc32(body.encode()):08x} {body}\n".encode()
    journal.write_bytes(odd + b"x\n" + record)
    partial = PartialOutput(tmp_path / "out")
    assert partial.begin(SETTINGS, True) == [line.number for line in LINES[:2]]
    assert journal.read_bytes() == odd + b"x\n" + record


def test_without_finished_work_there_is_nothing_to_resume(tmp_path: Path) -> None:
    begun(tmp_path)
    other = {**SETTINGS, "beam": 1}
    assert PartialOutput(tmp_path / "out").begin(other, False) == []
    store = PartialOutput(tmp_path / "out").store(0)
    store.add(LINES)
    assert PartialOutput(tmp_path / "elsewhere").begin(SETTINGS, True) == []
    store.gather()
    assert len(PartialOutput(tmp_path / "out").begin(other, True)) == len(LINES)


def test_what_is_done_is_not_thrown_away(tmp_path: Path) -> None:
    partial = begun(tmp_path, LINES)
    with pytest.raises(UserError, match=r"out\.partial: holds 4 lines .* add --resume .*or remove"):
        partial.begin(SETTINGS, False)
    assert len(list(partial.lines())) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "beam": 4}, "another beam "),
        ({**SETTINGS, "beam": 4, "input": "abd"}, "another input, beam "),
        ({**SETTINGS, "new": 1}, "another new "),
        ({"input": "abc", "beam": 5}, "another length-penalty "),
    ],
)
def test_other_settings_are_refused(
    tmp_path: Path, settings: dict[str, str | int | float], message: str
) -> None:
    partial = begun(tmp_path, LINES)
    with pytest.raises(UserError, match=message):
        partial.begin(settings, True)


def test_lost_settings_are_reported(tmp_path: Path) -> None:
    partial = begun(tmp_path, LINES)
    (partial.folder / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: damaged; remove "):
        partial.begin(SETTINGS, True)


def test_two_runs_do_not_write_at_once(tmp_path: Path) -> None:
    partial = begun(tmp_path, LINES)
    journal = partial.folder / "journal.00000"
    with files.Lock(files.lock_of(journal), journal, ""):
        for attempt in (lambda: partial.begin(SETTINGS, True), lambda: partial.store(0)):
            with pytest.raises(UserError, match=r"journal\.00000: another process is writing"):
                attempt()
    with pytest.raises(UserError, match=r"out\.partial: another process is .*another --output"):
        PartialOutput(tmp_path / "out").begin(SETTINGS, True)
    assert len(partial.begin(SETTINGS, True)) == 4


def test_a_translation_that_fails_closes_its_journal(tmp_path: Path) -> None:
    """Its lock goes with it, so the same process can start again."""
    partial = begun(tmp_path)
    store = partial.store(0)
    plan = SearchPlan([], [], {}, frozenset())

    class Broken:
        def translate(self, *_: object) -> Iterator[list[Line]]:
            yield LINES[:1]
            raise UserError("the disk is full")

    reading = Reading([], plan, 0, [])
    with pytest.raises(UserError, match="the disk is full"):
        translate_share(Broken(), reading, None, ALONE, [], store)  # type: ignore[arg-type]
    partial.store(0).close()
    assert list(partial.lines()) == LINES[:1]


def test_a_full_disk_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = begun(tmp_path)
    (partial.folder / "journal.00000").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"journal\.00000: cannot be written: No space left"):
        partial.store(0).add(LINES)

    def write_to_a_full_disk(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_to_a_full_disk)
    with pytest.raises(UserError, match=r"text: cannot be written: No space left"):
        write_lines(tmp_path / "text", ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
