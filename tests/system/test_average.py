"""`ds-seq average` on a real training that has moved from two ranks to one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds_seq.runs.open import load_run
from tests.system.forked import command, generate, train
from tests.system.runs import TINY, Lab, checkpoints, snapshot

SETTINGS = (*TINY, "train.validate_every=2", "validation={metrics: [], best: loss}")
KEPT = ("train.keep_last=3", "train.keep_best=2", "model.moe.router=sigmoid")


@pytest.fixture(scope="module")
def moved_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Updates 2 and 4 with experts on two ranks, update 6 with all on one; read-only."""
    folder = tmp_path_factory.mktemp("average") / "run"
    arguments = (lab.moe, *SETTINGS, *KEPT, f"run_dir={folder}")
    train(*arguments, "train.max_updates=4", ranks=2)[0].check()
    train(*arguments, "train.max_updates=6", "train.expert_parallel=1", "--resume")[0].check()
    layouts = [
        json.loads(path.read_text())["written_by"]["expert_parallel"]
        for path in sorted(folder.glob("checkpoints/update_*/checkpoint.json"))
    ]
    assert checkpoints(folder) == [2, 4, 6] and layouts == [2, 2, 1]
    return folder


def test_the_mean_over_two_layouts_translates(lab: Lab, moved_run: Path, tmp_path: Path) -> None:
    before = snapshot(moved_run)
    out = tmp_path / "mean.safetensors"
    finished = command("average", moved_run, "--last", "3", "--out", out)[0].check()
    *lines, last = finished.out.splitlines()
    for line, update in zip(lines, (2, 4, 6), strict=True):
        assert f"update_{update:08d}  update {update}  loss " in line
    assert last.startswith(f"{out}: mean of 3, ")
    assert snapshot(moved_run) == before

    ours = load_run(out, "best").model
    parts = [load_run(moved_run, f"update_{n:08d}").model for n in (2, 4, 6)]
    for name, value in ours.named_parameters():
        expected = torch.stack([p.get_parameter(name).double() for p in parts]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-7, atol=1e-9)
    assert any(not torch.equal(v, parts[2].get_parameter(n)) for n, v in ours.named_parameters())

    text, translation = lab.text("test.en"), tmp_path / "translation"
    options = ("--input", text, "--output", translation, "--beam", "1", "--max-len-b", "5")
    generate(out, *options)[0].check()
    assert len(translation.read_text().splitlines()) == len(text.read_text().splitlines())


def test_the_best_are_those_of_the_lowest_loss(moved_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = command("average", moved_run, "--best", "2", "--out", out)[0].check()
    losses = [float(line.rsplit(" ", 1)[1]) for line in finished.out.splitlines()[:-1]]
    index = json.loads((moved_run / "checkpoints" / "index.json").read_text())
    known = sorted(entry["score"] for entry in index["last"])
    assert losses == pytest.approx(known[:2], rel=1e-3)


def test_more_than_the_run_keeps_are_refused(moved_run: Path, tmp_path: Path) -> None:
    refused = command("average", moved_run, "--last", "5", "--out", tmp_path / "out")[0]
    assert refused.code == 2 and not refused.out
    (line,) = [line for line in refused.err.splitlines() if line.startswith("ds-seq: ")]
    assert "has kept 3 of its most recent checkpoints, not 5" in line
    assert "train.keep_last" in line and list(tmp_path.iterdir()) == []
