"""Run folders, exports, shards and teacher caches of earlier versions keep working.

See README.md next to this file. Losses are compared to 1e-5, because another CPU may add in another
order; translations are compared exactly.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.compat.made import (
    ARTEFACTS,
    MODELS,
    MORE_UPDATES,
    RESUMED,
    STUDENT,
    hypotheses,
    last_update,
    losses_after,
    resume_options,
)
from tests.system.forked import command

EXPECTED: dict[str, Any] = json.loads((ARTEFACTS / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the artifacts as the working folder: their paths are relative to it."""
    folder = tmp_path / "old"
    shutil.copytree(ARTEFACTS, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_translates(old: Path, name: str) -> None:
    arguments = ["--input", "text/test.en", "--output", "out.jsonl"]
    command("generate", MODELS[name], *arguments, "--format", "jsonl", "--n-best", "2")[0].check()
    translated = [found for line in hypotheses(old / "out.jsonl") for found in line]
    expected = [found for line in EXPECTED["translations"][name] for found in line]
    assert len(expected) == 20
    assert [found["text"] for found in translated] == [found["text"] for found in expected]
    scores = [found["score"] for found in expected]
    assert [found["score"] for found in translated] == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize("name", RESUMED)
def test_resumes_with_the_settings_in_the_run_folder(old: Path, name: str) -> None:
    run = old / "runs" / name
    before = last_update(run)
    command("train", run / "config.yaml", *resume_options(before), "--resume")[0].check()
    expected = EXPECTED["losses"][name]
    assert len(expected) == MORE_UPDATES
    assert losses_after(run, before) == pytest.approx(expected, rel=1e-5)
    assert last_update(run) == before + MORE_UPDATES


def test_learns_from_an_old_cache_and_old_shards(old: Path) -> None:
    command("train", Path(__file__).with_name("student.yaml"))[0].check()
    expected = EXPECTED["losses"][STUDENT]
    assert len(expected) == MORE_UPDATES
    assert losses_after(old / "runs" / STUDENT, 0) == pytest.approx(expected, rel=1e-5)


def test_learns_from_an_old_run_folder(old: Path) -> None:
    """A live teacher says what the cache of its answers says, but for what the cache leaves out."""
    student = Path(__file__).with_name("student.yaml")
    options = ["criterion.cache=null", "criterion.teacher=runs/moe", "criterion.top_k=4"]
    command("train", student, *options)[0].check()
    live = losses_after(old / "runs" / STUDENT, 0)
    assert live == pytest.approx(EXPECTED["losses"][STUDENT], rel=1e-3)


def test_an_old_export_is_what_its_run_folder_is() -> None:
    translations = EXPECTED["translations"]
    assert translations["dense_file"] == translations["dense"]
    assert translations["moe_folder"] == translations["moe"]
