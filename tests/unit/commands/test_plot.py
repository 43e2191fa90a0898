"""`ds-seq plot`: pictures of curves, and mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ds_seq.cli import main
from ds_seq.reports.curves import read_curves
from tests.fresh import words_printed_by


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, one of them without validation."""
    for name, slow in {"fast_$1": 1, "slow": 2}.items():
        lines: list[object] = [[3], {"kind": "end", "update": 3}, {"kind": "train", "update": "x"}]
        for update in (10, 20, 30):
            figures = {"loss": 9.0 / update, "tokens": 500.0, "seconds_per_update": 36.0 * slow}
            lines.append({"kind": "train", "update": update, "lr": 1e-3, "list": [1], **figures})
        if slow == 1:
            lines.append({"kind": "valid", "update": 25, "bleu": 20.0, "best_by": "bleu"})
        (tmp_path / "runs" / name).mkdir(parents=True)
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(text + '\n{"kind": "tr')
    return tmp_path / "runs"


def test_curves_lie_over_updates_tokens_or_hours(runs: Path) -> None:
    run = read_curves("fast", runs / "fast_$1")
    assert run.curve("loss", "updates") == ([10.0, 20.0, 30.0], [0.9, 0.45, 0.3])
    assert run.curve("loss", "tokens")[0] == [500.0, 1000.0, 1500.0]
    assert run.curve("loss", "hours")[0] == pytest.approx([0.1, 0.2, 0.3])
    assert run.curve("valid/best", "tokens") == ([1250.0], [20.0])
    assert read_curves("slow", runs / "slow").curve("valid/best", "updates") == ([], [])


@pytest.mark.parametrize("more", [[], ["--x", "hours", "--figures", "lr,loss,valid/bleu"]])
def test_a_picture_has_every_run(runs: Path, tmp_path: Path, more: list[str]) -> None:
    picture, drawing = tmp_path / "a.png", tmp_path / "a.svg"
    assert main(["plot", str(runs), "--out", str(picture), *more]) == 0
    with Image.open(picture) as image:
        assert image.width > 1000 and image.height > 500
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors
    assert main(["plot", str(runs), "--out", str(drawing), *more]) == 0
    assert drawing.read_text().count("<svg") == 1


def test_mistakes_are_one_line(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = str(tmp_path / "a.png")
    for argv, words in {
        (str(runs), "--out", "a.pdf"): "--out a.pdf: give a name that ends in .png or .svg",
        (str(runs), "--out", out, "--figures", "losss"): "did you mean 'loss'?",
        (str(runs), "--out", out, "--figures", ","): "--figures: is empty",
        (str(runs), "--out", "/proc/a.png"): "/proc/a.png: cannot be written",
        (str(tmp_path / "none"), "--out", out): "is no folder",
        (str(runs), "--out", out, "--x", "days"): "there are updates, tokens, hours",
    }.items():
        assert main(["plot", *argv]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    assert main(["plot", str(runs), "--out", out]) == 2
    assert "pip install 'ds_seq[plot]'" in capsys.readouterr().err


def test_help_loads_neither_torch_nor_matplotlib() -> None:
    code = "import ds_seq.commands.arguments.plot, ds_seq.commands.plot, sys; print(*sys.modules)"
    assert not {"torch", "matplotlib", "numpy"} & {*words_printed_by(code)}
