"""`ds-seq shortlist`, and the search of the commands with its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command, generate, train
from tests.system.runs import TINY, Lab, records


def _made(lab: Lab, run: Path, out: Path, *options: str | Path) -> Path:
    command("shortlist", run, "--data", lab.folder / "data", "--out", out, *options)[0].check()
    return out


def _few(lab: Lab, folder: Path) -> Path:
    few = folder / "few.en"
    few.write_text("".join(lab.text("test.en").open().readlines()[:12]))
    return few


def _translated(run: Path, few: Path, *options: str | Path) -> str:
    out = few.with_suffix(".out")
    generate(run, "--input", few, "--output", out, *options)[0].check()
    return out.read_text()


def test_a_list_of_all_tokens_changes_nothing(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    few = _few(lab, tmp_path)
    everything = _made(lab, dense_run, tmp_path / "all", "--frequent", "250")
    plain = _translated(dense_run, few)
    assert _translated(dense_run, few, "--shortlist", everything) == plain


@pytest.mark.slow
def test_a_short_list_changes_translations_alike_in_all_batches(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    few = _few(lab, tmp_path)
    size = ("--targets", "2", "--frequent", "0")
    short = ("--shortlist", _made(lab, dense_run, tmp_path / "short", *size))
    changed = _translated(dense_run, few, *short)
    assert changed != _translated(dense_run, few)
    assert _translated(dense_run, few, *short, "--max-sentences", "1") == changed


@pytest.mark.slow
def test_mistakes_are_one_line(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    few = _few(lab, tmp_path)
    made = _made(lab, dense_run, tmp_path / "made")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(made.read_bytes()[:-1])
    changed = tmp_path / "changed"
    changed.write_bytes(made.read_bytes()[:-1] + b"x")
    other = tmp_path / "other.safetensors"
    command("export", dense_run, "--out", other)[0].check()
    cases: dict[tuple[str | Path, ...], str] = {
        ("--shortlist", tmp_path / "none"): "no such file",
        ("--shortlist", damaged): "damaged",
        ("--shortlist", changed): "damaged",
        ("--shortlist", other): "is no shortlist of this version",
        ("--shortlist", made, "--prefix", few): "cannot be combined with --prefix",
        ("--shortlist", made, "--sampling", "true"): "cannot be combined with sampling",
        (dense_run, "--shortlist", made): "works with one translation model",
    }
    for options, words in cases.items():
        refused = generate(dense_run, "--input", few, *options)[0]
        assert refused.code == 2 and words in refused.err, (options, refused)
        assert refused.err.count("\n") == 1 and "Traceback" not in refused.err


@pytest.mark.slow
def test_validation_and_labels_take_it(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    made = _made(lab, dense_run, tmp_path / "made")
    settings = (*TINY, f"run_dir={tmp_path / 'run'}", f"generation.shortlist={made}")
    limits = ("train.max_updates=2", "train.validate_every=1", "validation.max_sentences=5")
    train(lab.dense, *settings, *limits)[0].check()
    assert len(records(tmp_path / "run", "valid")) == 2
    label = ("pseudo-label", dense_run, "--data", lab.folder / "data", "--split", "test")
    command(*label, "--out", tmp_path / "labels", "--shortlist", made)[0].check()
