"""Files that a kill between any two operations leaves as they were, or as they should become."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ds_seq import cli, files
from tests.data.toy import write_toy
from tests.faults import kills

_EXPERIMENT = """\
name: faults
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  workers: 1
  raw:
    train: {{source: {folder}/text/train.en, target: {folder}/text/train.de}}
    valid: {{source: {folder}/text/valid.en, target: {folder}/text/valid.de}}
  max_source_length: 32
  max_target_length: 32
  vocab: {{size: 120, model_type: bpe}}
model: {{d_model: 16, num_heads: 2}}
"""


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path, seen = tmp_path / "history.json", []
    files.write_json(path, {"versions": [1]})
    for _ in kills(lambda: files.write_json(path, {"versions": [1, 2]})):
        seen.append(json.loads(path.read_text())["versions"])
        files.write_json(path, {"versions": [1]})  # which also removes what a kill has left
        assert [item.name for item in tmp_path.iterdir()] == ["history.json"]
    assert seen[0] == [1] and seen[-1] == [1, 2] and len(seen) > 3


@pytest.mark.parametrize(
    "moments", [(9, 40), pytest.param(range(0, 1000, 3), marks=pytest.mark.slow)]
)
def test_a_preparation_that_is_killed_ends_with_the_same_bytes(
    tmp_path: Path, moments: range
) -> None:
    write_toy(tmp_path / "text", train=60, held_out=5)
    experiment, data = tmp_path / "faults.yaml", tmp_path / "data"
    experiment.write_text(_EXPERIMENT.format(folder=tmp_path))

    def prepare() -> None:
        assert cli.main(["prepare", str(experiment)]) == 0

    prepare()
    expected, names = _sums(data), {path.name for path in data.iterdir()}
    shutil.rmtree(data)
    ended = []
    for _ in kills(prepare, moments):
        ended.append(data.exists() and _sums(data) == expected)
        prepare()
        assert _sums(data) == expected
        assert {path.name for path in data.iterdir()} == names, "nothing is left of the kill"
        shutil.rmtree(data)
    assert not ended[0]


def _sums(folder: Path) -> dict[str, str]:
    """Checksums of the files, except the hidden ones: unfinished work."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if not name.startswith(".")
    }
