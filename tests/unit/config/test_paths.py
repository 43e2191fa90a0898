"""Tests of the rule for relative paths in experiment files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ds_seq.config import paths
from ds_seq.config.load import load_experiment
from ds_seq.config.schema import sections
from tests.unit.config.fixture_types import WriteFile
from tests.unit.config.test_load import complaints


def test_the_deepspeed_json_is_found_from_the_experiment_file(
    write: WriteFile, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = write("configs/ds/zero1.json", "{}")
    child = write(
        "configs/experiments/child.yaml",
        "extends: ../../small.yaml\ntrain: {deepspeed: configs/ds/zero1.json}\n",
    )
    monkeypatch.chdir(write("elsewhere/here", "").parent)
    train = load_experiment(child).train
    assert train.deepspeed is not None and Path(train.deepspeed).samefile(found)
    monkeypatch.chdir(tmp_path)
    assert load_experiment(child).train.deepspeed == "configs/ds/zero1.json"
    found.unlink()
    assert load_experiment(child).train.deepspeed == "configs/ds/zero1.json"


def test_files_are_found_here_or_next_to_the_experiment_file(
    write: WriteFile, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rule for all files that an experiment names, whichever file of a chain names them."""
    for name in ("project/train.en", "project/train.de", "project/big/config.yaml"):
        write(name, "")
    write(
        "project/parent.yaml",
        "extends: ../small.yaml\ndata: {raw: {train: {source: train.en, target: train.de}}}\n",
    )
    child = write(
        "project/sub/child.yaml",
        "extends: ../parent.yaml\n"
        "train: {init_from: big}\n"
        "criterion: {name: model_and_base, base: {name: distillation, teacher: [big, none]}}\n",
    )
    monkeypatch.chdir(tmp_path)
    config = load_experiment(child)
    (train,) = config.data.raw.train
    assert Path(train.source).is_file() and Path(train.target).is_file()
    assert config.train.init_from == str(tmp_path / "project" / "big")
    assert config.distillation is not None
    assert config.distillation.teacher == [str(tmp_path / "project" / "big"), "none"]
    assert config.data.dir == "shards"  # what is written is in the working folder
    # as written where it is found from the working folder, which comes first
    monkeypatch.chdir(tmp_path / "project")
    assert load_experiment(child).train.init_from == "big"


def test_a_path_with_two_meanings_is_refused(
    write: WriteFile, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = write("sub/child.yaml", "extends: ../small.yaml\ntrain: {init_from: big}\n")
    here, there = write("big", ""), write("sub/big", "")
    monkeypatch.chdir(tmp_path)
    (line,) = complaints(child)
    assert f"{child}: big is a file of the working folder, but also {there}" in line
    here.unlink()
    assert load_experiment(child).train.init_from == str(there)
    assert load_experiment(child, ["train.init_from=big"]).train.init_from == str(there)


def test_a_file_of_rules_is_found_and_a_rule_is_no_path(write: WriteFile, experiment: Path) -> None:
    for name in ("project/rules.tsv", "project/nmt_nfkc"):
        write(name, "")
    rules = {"rules.tsv": str(experiment.parent / "project/rules.tsv"), "nmt_nfkc": "nmt_nfkc"}
    for rule, found in rules.items():
        child = write(
            "project/child.yaml",
            f"extends: ../small.yaml\ndata: {{vocab: {{normalization: {rule}}}}}\n",
        )
        assert load_experiment(child).data.vocab.normalization == found


def test_files_of_cleaning_are_found_wherever_they_are_named(
    write: WriteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all text, for a language pair, and for a corpus."""
    found = write("project/rules.txt", "")
    child = write(
        "project/child.yaml",
        "data:\n"
        "  {source_lang: en, target_lang: de, dir: shards,\n"
        "   clean: {patterns: rules.txt, pairs: {'*-de': {patterns: rules.txt}}},\n"
        "   corpora: {web: {source: a.en, target: a.de, clean: {patterns: rules.txt}}}}\n"
        "name: toy\n"
        "train: {max_tokens: 1000, max_updates: 1, validate_every: null, save_every: 1}\n",
    )
    monkeypatch.chdir(tmp_path)
    data = load_experiment(child).data
    assert data.clean.patterns == data.clean.pairs["*-de"]["patterns"] == str(found)
    assert data.corpora["web"].clean["patterns"] == str(found)


_NAMES_A_FILE = re.compile(r"(?:Its |Run )?(?:files?|folders?)\b", re.IGNORECASE)
_WRITTEN = {"run_dir", "data.dir"}


def test_no_option_that_names_a_file_is_forgotten() -> None:
    forgotten = []
    for section in sections():
        for name, field in section.config.model_fields.items():
            key = f"{section.path}.{name}".lstrip(".")
            if key in _WRITTEN or not _NAMES_A_FILE.match(field.description or ""):
                continue
            keys: Any = paths._INPUTS
            for part in key.replace("NAME", "*").split("."):
                keys = keys.get(part) if isinstance(keys, dict) else None
            if keys is None:
                forgotten.append(key)
    assert not forgotten
