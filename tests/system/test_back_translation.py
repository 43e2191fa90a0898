"""Back-translation in training through the commands: both directions in one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses

SETTINGS = (
    *TINY,
    *NO_VALIDATION,
    "model.dropout=0",
    "model.moe.capacity_factor=null",
    "data.max_source_length=20",
    "data.max_target_length=20",
    "train.max_sentences=3",
    "train.max_tokens=500",
    "train.log_every=1",
    "optimizer={name: sgd, lr: 0.1}",
)
ONE_RANK = ("train.expert_parallel=1", "train.accumulate=2")


def _write(lab: Lab, folder: Path, back: str) -> Path:
    """Write an experiment with pairs in both directions, and text in German alone."""
    text = lab.folder / "text"
    lines = (text / "train.en").read_text().splitlines()
    targets = (text / "train.de").read_text().splitlines()
    for name, side, part in (
        ("a.en", lines, slice(0, 40)),
        ("a.de", targets, slice(0, 40)),
        ("mono.de", targets, slice(40, 120)),
    ):
        (folder / name).write_text("\n".join(side[part]) + "\n")
    (folder / "both.yaml").write_text(f"""\
extends: {lab.moe}
name: both
data:
  dir: {folder}/data
  raw: {{train: []}}
  vocab: {{size: 260, user_symbols: [<2en>, <2de>, <bt>]}}
  mixing: {{language_tags: {{en: <2en>, de: <2de>}}}}
  corpora:
    forth: {{source: {folder}/a.en, target: {folder}/a.de}}
    back: {{source: {folder}/a.de, target: {folder}/a.en, languages: [de, en]}}
    mono: {{source: {folder}/mono.de, target: {folder}/mono.de, tag: <bt>, {back}}}
""")
    return folder / "both.yaml"


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run of two updates in one process."""
    folder = tmp_path_factory.mktemp("back")
    file = _write(lab, folder, "back_translate: {sampling: true}")
    command("prepare", file, *SETTINGS)[0].check()
    run = (f"run_dir={folder}/whole", "train.max_updates=2")
    train(file, *SETTINGS, *ONE_RANK, *run)[0].check()
    return folder


@pytest.mark.parametrize(
    "stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2, 3))]
)
def test_layouts_make_the_same_training(lab: Lab, folder: Path, stage: int) -> None:
    zero = f"train.deepspeed={Path(__file__).parents[2]}/configs/ds_config/zero{stage}.json"
    run = folder / f"zero{stage}"
    settings = (folder / "both.yaml", *SETTINGS, f"run_dir={run}")
    train(*settings, zero, "train.max_updates=2", ranks=2)[0].check()
    for update, loss in losses(folder / "whole").items():
        assert losses(run)[update] == pytest.approx(loss, rel=1e-4), f"update {update}"


@pytest.mark.slow
def test_the_sources_are_those_that_the_model_makes(lab: Lab, folder: Path) -> None:
    """Without back-translation, the same text would be copied, which is another loss."""
    (folder / "plain").mkdir()
    file = _write(lab, folder / "plain", "clean: {drop_identical: false}")
    run = (f"run_dir={folder}/plain/run", f"data.dir={folder}/data", "train.max_updates=1")
    train(file, *SETTINGS, *ONE_RANK, *run)[0].check()
    assert losses(folder / "plain" / "run")[1] != pytest.approx(losses(folder / "whole")[1])
