"""A cache answers for exactly the requested tokens, or reports why it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.cache_manifest import CacheManifest, TeacherRecord
from ds_seq.data.shards import ShardReader
from ds_seq.data.teacher_cache import CacheWriter, Stored, TeacherCache, plan_cache
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

TOP_K, MANY = 3, 10**6
SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
TEACHER = TeacherRecord("runs/big", "runs/big/checkpoints/update_1", "torch.float32", "ab12")


def plan(reader: ShardReader, part_tokens: int = 500, stored: Stored = "fp32") -> CacheManifest:
    return plan_cache(reader, TOP_K, stored, [TEACHER], 1000, part_tokens)


def answers(reader: ShardReader, manifest: CacheManifest, pairs: range) -> NDArray[np.void]:
    """What can be recognized: the right token, then numbers that no other token has."""
    lengths = reader.lengths[:, 1]
    start, count = int(lengths[: pairs.start].sum()), int(lengths[pairs.start : pairs.stop].sum())
    records = np.zeros(count, manifest.record)
    number = np.arange(start, start + count)
    records["ids"][:, 0] = reader.gather(np.asarray(pairs))[1].tokens
    records["ids"][:, 1], records["ids"][:, 2] = number % 127, number // 127
    records["log_probs"] = -number[:, None] / 256 - np.arange(TOP_K)
    return records


def write(
    folder: Path, reader: ShardReader, manifest: CacheManifest, parts: int | None = None
) -> CacheWriter:
    """Write some parts, the last ones first, or all of them and finish."""
    writer = CacheWriter(folder, "train", manifest, reader)
    writer.start()
    for part in writer.missing()[::-1][:parts]:
        writer.write(part, answers(reader, manifest, writer.pairs(part)))
    if parts is None:
        writer.finish()
    return writer


@pytest.fixture
def cache(tmp_path: Path, reader: ShardReader) -> Path:
    """A finished cache of several parts, which a test may damage."""
    write(tmp_path / "cache", reader, plan(reader))
    return tmp_path / "cache"


@pytest.mark.parametrize("part_tokens", [1, 97, 500, MANY])
def test_answers_belong_to_the_requested_tokens(
    reader: ShardReader, tmp_path: Path, part_tokens: int
) -> None:
    manifest = plan(reader, part_tokens)
    write(tmp_path, reader, manifest)
    cache = TeacherCache(tmp_path, "train", reader)
    everything = answers(reader, manifest, range(len(reader)))
    ends = np.cumsum(reader.lengths[:, 1])
    rows = np.array([250, 3, 81, 80, 3, 0, 299])
    places = np.concatenate([np.arange(ends[r] - reader.lengths[r, 1], ends[r]) for r in rows])
    ids, log_probs = cache.gather(rows)
    assert (ids.dtype, log_probs.dtype) == (np.int64, np.float32)
    assert np.array_equal(ids, everything["ids"][places])
    assert np.array_equal(log_probs, everything["log_probs"][places])


def test_parts_are_ranges_of_pairs_of_about_equal_size(reader: ShardReader) -> None:
    first = plan(reader, 500).first
    assert first[0] == 0 and first[-1] == len(reader) and list(first) == sorted(set(first))
    tokens = np.add.reduceat(reader.lengths[:, 1], first[:-1])
    longest = reader.lengths[:, 1].max()
    assert tokens.max() < 500 + longest and tokens[:-1].min() > 500 - longest


def test_half_precision_keeps_three_digits(reader: ShardReader, tmp_path: Path) -> None:
    rows = np.arange(len(reader))
    kept = []
    for stored in ("fp32", "fp16"):
        write(tmp_path / stored, reader, plan(reader, stored=stored))
        kept.append(TeacherCache(tmp_path / stored, "train", reader).gather(rows))
    np.testing.assert_array_equal(kept[1][0], kept[0][0])
    np.testing.assert_allclose(kept[1][1], kept[0][1], rtol=2**-11)
    assert not np.array_equal(kept[1][1], kept[0][1])


def test_a_batch_brings_a_row_for_each_real_token(reader: ShardReader, cache: Path) -> None:
    limit = int(np.median(reader.lengths[:, 1]))
    dataset = ParallelDataset(reader, None, limit)
    assert dataset.num_left_out
    dataset.attach(TeacherCache(cache, "train", reader))
    batch = dataset.collate([5, 0, len(dataset) - 1, 7], SYMBOLS)
    assert batch.teacher is not None
    ids, log_probs = batch.teacher
    assert ids.shape == log_probs.shape == (batch.num_tokens, TOP_K)
    assert ids[:, 0].tolist() == batch.real_labels.tolist()
    moved = batch.to("meta").teacher
    assert moved is not None and all(tensor.device.type == "meta" for tensor in moved)
    empty = dataset.collate([], SYMBOLS).teacher
    assert empty is not None and empty.ids.shape == empty.log_probs.shape == (0, TOP_K)


def test_without_a_cache_there_is_no_answer(reader: ShardReader) -> None:
    assert ParallelDataset(reader).collate([0], SYMBOLS).teacher is None


def test_what_is_not_finished_is_no_cache(reader: ShardReader, tmp_path: Path) -> None:
    manifest = plan(reader)
    done = write(tmp_path, reader, manifest, parts=2)
    with pytest.raises(UserError, match=r"'train' is not finished; run the command .* again"):
        TeacherCache(tmp_path, "train", reader)
    left = [*range(len(manifest.first) - 1)][:-2]
    assert done.missing() == left and len(left) > 2
    part = tmp_path / f"train.teacher.{len(left):05d}.bin"
    part.write_bytes(part.read_bytes()[:-1])  # a machine that lost power
    again = CacheWriter(tmp_path, "train", manifest, reader)
    again.start()
    assert again.missing() == [*left, len(left)]
    write(tmp_path, reader, manifest)
    assert again.missing() == []
    TeacherCache(tmp_path, "train", reader)
    assert not (tmp_path / "train.teacher.plan.json").exists()


def test_starting_anew_leaves_a_finished_cache_alone(reader: ShardReader, cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    write(cache, reader, plan(reader))
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"top_k": 4}, "--top-k"),
        ({"log_probs": "float16"}, "--precision"),
        ({"teachers": (replace(TEACHER, weights="cd34"),)}, "teacher"),
        ({"teachers": (replace(TEACHER, precision="torch.float16"),)}, "--dtype"),
        ({"first": (0, 300)}, "--part-tokens"),
        ({"source": "ff"}, "shards"),
    ],
)
@pytest.mark.parametrize("parts", [1, None])
def test_two_settings_do_not_mix(
    reader: ShardReader, tmp_path: Path, changes: dict[str, Any], named: str, parts: int | None
) -> None:
    manifest = plan(reader)
    write(tmp_path, reader, manifest, parts)
    with pytest.raises(UserError, match="other settings") as error:
        CacheWriter(tmp_path, "train", replace(manifest, **changes), reader).start()
    assert named in str(error.value) and "\n" not in str(error.value)


def test_the_name_of_a_teacher_is_no_setting(reader: ShardReader, cache: Path) -> None:
    moved = replace(TEACHER, name="./runs/big", source="elsewhere")
    CacheWriter(cache, "train", replace(plan(reader), teachers=(moved,)), reader).start()


def _truncate(cache: Path) -> None:
    path = cache / "train.teacher.00002.bin"
    path.write_bytes(path.read_bytes()[:-4])


def test_a_cache_of_the_first_format_is_read(reader: ShardReader, cache: Path) -> None:
    path = cache / "train.teacher.json"
    written = json.loads(path.read_text())
    checksums = {name: file.sha256 for name, file in reader.manifest.files.items()}
    first = {key: value for key, value in written.items() if key != "source"}
    path.write_text(json.dumps({**first, "version": 1, "shards": checksums}))
    TeacherCache(cache, "train", reader)
    write(cache, reader, plan(reader))  # a run of the command finds it finished
    path.write_text(json.dumps({**first, "version": 1, "shards": {**checksums, "x": "0"}}))
    with pytest.raises(UserError, match="other shards"):
        TeacherCache(cache, "train", reader)


def _delete(cache: Path) -> None:
    (cache / "train.teacher.00001.bin").unlink()


def _edit(**changes: object) -> Callable[[Path], None]:
    def edit(cache: Path) -> None:
        path = cache / "train.teacher.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def _scribble(cache: Path) -> None:
    (cache / "train.teacher.json").write_text('{"version"')


def _rename(cache: Path) -> None:
    for path in cache.iterdir():
        path.rename(cache / path.name.replace("train", "valid"))


def _empty(cache: Path) -> None:
    for path in cache.iterdir():
        path.unlink()


def _remove(cache: Path) -> None:
    _empty(cache)
    cache.rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"train\.teacher\.00002\.bin: has [\d,]+ bytes in place of"),
        (_delete, r"train\.teacher\.00001\.bin: has 0 bytes in place of"),
        (_edit(vocab_hash="f" * 64), r"train\.teacher\.json: .*vocabulary f{12}, the data has"),
        (_edit(source="ff"), r"train\.teacher\.json: .*other shards"),
        (_edit(version=3), "has format version 3, but 2 is needed"),
        (_scribble, r"train\.teacher\.json: is damaged"),
        (_edit(first=None), r"train\.teacher\.json: is damaged"),
        (_rename, r"runs/big --data \S+ --top-k 3 --splits train --out \S+cache"),
        (_empty, "contains no cache; make it with `ds-seq teacher-cache"),
        (_remove, "no such cache; make it with `ds-seq teacher-cache"),
    ],
)
def test_a_damaged_cache_is_named(
    reader: ShardReader, cache: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(cache)
    with pytest.raises(UserError, match=message) as error:
        TeacherCache(cache, "train", reader)
    assert "\n" not in str(error.value)


def test_pairs_that_the_teacher_could_not_read_are_refused(
    reader: ShardReader, tmp_path: Path
) -> None:
    longest = reader.lengths.max(axis=1)
    limit = int(np.median(longest))
    manifest = plan_cache(reader, TOP_K, "fp32", [TEACHER], limit, MANY)
    assert manifest.left_out == (longest > limit).sum() > 0
    write(tmp_path, reader, manifest)
    cache = TeacherCache(tmp_path, "train", reader)
    with pytest.raises(UserError, match=rf"data.max_source_length={limit} and .*={limit}"):
        ParallelDataset(reader, limit + 1, limit + 1).attach(cache)
    for lengths in ((limit + 1, limit), (limit, limit + 1)):
        with pytest.raises(UserError, match=r"lacks 1 of 2 pairs"):
            cache.check_covers(np.array([lengths, (limit, limit)]))
    ParallelDataset(reader, limit, limit).attach(cache)
