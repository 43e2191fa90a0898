"""`ds-seq recipes`: what comes with ds_seq is listed, shown and copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_seq.cli import main
from ds_seq.config.load import load_experiment
from ds_seq.config.shipped import experiments_folder, recipes
from tests.fresh import words_printed_by

RECIPES = recipes()
MARIAN = Path(__file__).parents[2] / "data" / "huggingface" / "marian"


def test_the_list_has_all_facts_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for recipe in RECIPES:
        (at,) = (n for n, line in enumerate(lines) if line.split()[:1] == [recipe.name])
        assert recipe.expect in lines[at] and recipe.hardware in lines[at] and " GB" in lines[at]
        mark, _, summary = lines[at + 1].strip().partition("  ")
        assert summary.strip() == recipe.summary
        assert (mark == "measured") == (recipe.estimated is None)
        assert (mark == "estimated") == (recipe.measured is None)


def test_words_choose_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls", "experts", "WMT16", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert {recipe["name"] for recipe in found} == {"wmt16_en_de_moe", "wmt16_en_de_big_moe"}
    assert all(recipe["figures"] == "estimated" and recipe["steps"] for recipe in found)


def test_the_file_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "tiny_moe"]) == 0
    text = (experiments_folder() / "tiny_moe.yaml").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert main(["recipes", "show", "tiny_moe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_copy_is_the_same_experiment_and_passes_check(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied twice, so that files which two copies share are kept; read from another folder."""
    monkeypatch.chdir(tmp_path)
    other = "tiny_dense" if recipe.name != "tiny_dense" else "tiny_retnet"
    assert main(["recipes", "cp", other, "new/"]) == 0
    assert main(["recipes", "cp", recipe.name, "new/my.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "ds-seq prepare new/my.yaml" in shown and f"text: {recipe.text}" in shown
    assert "configs/" not in Path("new/my.yaml").read_text(encoding="utf-8")
    there = tmp_path / "elsewhere"
    there.mkdir()
    monkeypatch.chdir(there)
    overrides = [f"model.path={MARIAN}"] if recipe.name == "finetune_huggingface" else []
    copy = load_experiment(tmp_path / "new" / "my.yaml", overrides)
    original = load_experiment(recipe.path, overrides)
    for config in (copy, original):
        assert config.train.deepspeed is None or Path(config.train.deepspeed).is_file()
    same = {"train": copy.train.model_copy(update={"deepspeed": original.train.deepspeed})}
    assert copy.model_copy(update=same) == original
    ranks = ["--world", "8"] if original.train.expert_parallel == 8 else []
    path = str(tmp_path / "new" / "my.yaml")
    assert main(["check", path, "--elsewhere", *ranks, *overrides]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["recipes", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("mine")
    assert "mine.yaml: exists already" in refused(capsys, "cp", "tiny_retnet", "mine.yaml")
    Path("tiny_dense.yaml").write_text("mine")
    line = refused(capsys, "cp", "tiny_retnet")  # which extends it
    assert "tiny_dense.yaml: exists already, and differs" in line
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "tiny_dense.yaml"}
    assert Path("mine.yaml").read_text() == Path("tiny_dense.yaml").read_text() == "mine"
    assert main(["recipes", "cp", "tiny_moe"]) == 0
    assert "tiny_moe.yaml: exists already" in refused(capsys, "cp", "tiny_moe")


def test_mistakes_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'tiny_mo' (did you mean 'tiny_moe'?)" in refused(capsys, "show", "tiny_mo")
    assert "'show'" in refused(capsys, "shwo", "tiny_moe")
    assert "the form is cp NAME [DEST]" in refused(capsys, "cp")
    assert "has too much: b" in refused(capsys, "show", "tiny_moe", "b")
    assert "no recipe has all of these words" in refused(capsys, "ls", "tiny", "speech")
    assert "--json" in refused(capsys, "cp", "tiny_moe", "--json")
    assert "a .yaml file" in refused(capsys, "cp", "tiny_moe", "my.txt")
    line = refused(capsys, "cp", "tiny_retnet", "x/tiny_dense.yaml")
    assert "the name of the file that it extends" in line
    Path("file").write_text("")
    assert "cannot be written" in refused(capsys, "cp", "tiny_moe", "file/my.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_the_list_needs_no_torch() -> None:
    heavy = ("torch", "numpy", "yaml")
    code = (
        "import io, sys\nfrom contextlib import redirect_stdout\nfrom ds_seq.cli import main\n"
        "with redirect_stdout(io.StringIO()):\n    main(['recipes', 'ls'])\n"
        f"print(*sorted(set({heavy!r}) & set(sys.modules)))"
    )
    assert words_printed_by(code) == []
