"""The journal of a labeling: records are read as written, and a kill loses one record at most."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from ds_seq.distill.journal import Journals, JournalWriter, repair
from ds_seq.errors import UserError
from ds_seq.search.hypotheses import Hypothesis

EOS = 2
Batch = tuple[list[int], list[list[Hypothesis]]]


def draw_batches(count: int, first_row: int = 0, seed: int = 0) -> list[Batch]:
    """Batches of one to four sentences, with one to three hypotheses each, some of them empty."""
    draw = random.Random(seed)
    batches = []
    for _ in range(count):
        rows = list(range(first_row, first_row + draw.randint(1, 4)))
        first_row = rows[-1] + 1
        draw.shuffle(rows)
        found = []
        for _ in rows:
            several = []
            for _ in range(draw.randint(1, 3)):
                tokens = [draw.randrange(3, 70_000) for _ in range(draw.randrange(6))]
                score = float(np.float32(-draw.random()))
                several.append(Hypothesis(tokens, score, []))
            found.append(several)
        batches.append((rows, found))
    return batches


def write(path: Path, batches: list[Batch]) -> None:
    with JournalWriter(path, EOS) as writer:
        for rows, found in batches:
            writer.append(np.array(rows), found)


def content(batches: list[Batch]) -> list[tuple[int, float, list[int]]]:
    """Row, score and tokens of each hypothesis, as they must be read."""
    by_row = {
        row: several for rows, found in batches for row, several in zip(rows, found, strict=True)
    }
    return [(row, h.score, [*h.tokens, EOS]) for row in sorted(by_row) for h in by_row[row]]


def read(*paths: Path) -> list[tuple[int, float, list[int]]]:
    journals = Journals(list(paths))
    labels = journals.labels()
    block = journals.gather(labels)
    tokens = np.split(block.tokens, np.cumsum(block.lengths))[:-1]
    assert [len(part) for part in tokens] == block.lengths.tolist() == labels.lengths.tolist()
    assert sorted(set(labels.rows.tolist())) == sorted(journals.sentences().tolist())
    columns = (labels.rows.tolist(), labels.scores.tolist(), [part.tolist() for part in tokens])
    return list(zip(*columns, strict=True))


def test_several_journals_give_every_hypothesis_by_sentence_and_rank(tmp_path: Path) -> None:
    batches = draw_batches(20)
    paths = [tmp_path / name for name in "abc"]
    for rank, path in enumerate(paths):
        write(path, batches[rank::3])
    assert read(*paths) == read(*paths[::-1]) == content(batches)


def test_some_hypotheses_of_several_journals(tmp_path: Path) -> None:
    batches = draw_batches(10)
    write(tmp_path / "a", batches[:5])
    write(tmp_path / "b", batches[5:])
    journals = Journals([tmp_path / "a", tmp_path / "b"])
    chosen = journals.labels().take(np.array([17, 3, 4, 0]))
    expected = [content(batches)[i][2] for i in (17, 3, 4, 0)]
    assert journals.gather(chosen).tokens.tolist() == sum(expected, [])


def test_nothing_is_no_hypothesis(tmp_path: Path) -> None:
    write(tmp_path / "a", [])
    assert read() == read(tmp_path / "a") == []


def test_a_record_is_on_the_disk_before_the_next_batch_begins(tmp_path: Path) -> None:
    batches = draw_batches(2)
    with JournalWriter(tmp_path / "a", EOS) as writer:
        writer.append(np.array(batches[0][0]), batches[0][1])
        assert read(tmp_path / "a") == content(batches[:1])


def test_a_torn_record_is_ignored_wherever_it_was_cut(tmp_path: Path) -> None:
    first, last = draw_batches(3)[:2], draw_batches(3)[2:]
    path, torn = tmp_path / "a", tmp_path / "torn"
    write(path, first)
    whole = path.stat().st_size
    write(path, last)
    data = path.read_bytes()
    for size in range(whole, len(data)):
        torn.write_bytes(data[:size])
        assert read(torn) == content(first), size
        repair(torn)
        assert torn.stat().st_size == whole
    write(torn, last)
    assert torn.read_bytes() == data


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5, -1])
def test_a_damaged_record_is_ignored(tmp_path: Path, place: int) -> None:
    """After a power cut the length of a file may be right and its content not."""
    first, last = draw_batches(3)[:2], draw_batches(3)[2:]
    path = tmp_path / "a"
    write(path, first)
    whole = path.stat().st_size
    write(path, last)
    data = bytearray(path.read_bytes())
    data[whole + 4 * place if place >= 0 else len(data) - 4] ^= 1
    path.write_bytes(data)
    assert read(path) == content(first)


@pytest.mark.parametrize("place", [0, 1, 3, 4, 5, -1])
def test_damage_in_the_middle_costs_one_batch(tmp_path: Path, place: int) -> None:
    batches = draw_batches(9)
    path, ends = tmp_path / "a", []
    for batch in batches:
        write(path, [batch])
        ends.append(path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[ends[3] + 4 * place if place >= 0 else ends[4] - 4] ^= 1
    path.write_bytes(data)
    repair(path)
    assert path.stat().st_size == ends[-1]
    assert read(path) == content([*batches[:4], *batches[5:]])


@pytest.mark.parametrize(
    "body",
    [
        [0, 2, 1, 0, 7],  # two hypotheses of a sentence, and one in all
        [0, 0xFFFF_FFFF, 1, 0, 7],
        [0, 1, 2, 0, 7],  # more tokens than there are
        [0, 1, 0, 0, 7],  # not even an end symbol
    ],
)
def test_a_record_whose_sizes_contradict_each_other_is_ignored(
    tmp_path: Path, body: list[int]
) -> None:
    """Its checksum may be right if it was written by something else."""
    path = tmp_path / "a"
    words = np.array(body, "<u4").tobytes()
    header = np.array([0x4C50_5344, 1, 1, 1, zlib.crc32(words)], "<u4")
    path.write_bytes(header.tobytes() + words)
    batches = draw_batches(1)
    write(path, batches)
    assert read(path) == content(batches)


def test_two_processes_never_write_to_one_journal(tmp_path: Path) -> None:
    write(tmp_path / "a", draw_batches(2))
    with JournalWriter(tmp_path / "a", EOS):
        with pytest.raises(UserError, match="another process"):
            JournalWriter(tmp_path / "a", EOS)
        with pytest.raises(UserError, match="another process"):
            repair(tmp_path / "a")
    repair(tmp_path / "a")
    assert read(tmp_path / "a") == content(draw_batches(2))
