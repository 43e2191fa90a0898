"""Selected tokens in whole trainings: the same in every layout, after a resume, and in fp16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from ds_seq.names import Strategy
from tests.data.toy import toy_pairs
from tests.system.forked import command, train
from tests.system.runs import Lab, records

FIGURES = ("loss", "ce", "kd", "kd_tokens")
TAGS = ("<easy>", "<hard>")
QUEUES = ("global_level", "global_language_wise")


class Tagged(NamedTuple):
    """Text in two languages marked by a tag, and a teacher trained on it."""

    experiment: Path
    teacher: Path


@pytest.fixture(scope="module")
def tagged(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Tagged:
    """Translations behind one tag; behind the other, targets that have nothing to do with it."""
    folder = tmp_path_factory.mktemp("tagged")
    pairs = toy_pairs(600, seed=5)
    others = [target for _, target in toy_pairs(600, seed=6)]
    sides: dict[str, list[str]] = {"en": [], "de": []}
    for number, ((source, target), other) in enumerate(zip(pairs, others, strict=True)):
        hard = number % 2
        sides["en"].append(f"{TAGS[hard]} {source}")
        sides["de"].append(other if hard else target)
    for name, lines in sides.items():
        (folder / f"train.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    experiment = folder / "tagged.yaml"
    experiment.write_text(
        f"""\
extends: {lab.dense}
name: tagged
run_dir: {folder}/teacher
data:
  dir: {folder}/data
  raw:
    train: {{source: {folder}/train.en, target: {folder}/train.de}}
    valid: []
    test: []
  clean: {{min_words: 1, max_ratio: 20}}
  vocab: {{size: 260, user_symbols: ["<easy>", "<hard>"]}}
model: {{d_model: 16, ffn_dim: 32, dropout: 0}}
train:
  {{max_tokens: 200, max_updates: 30, validate_every: null, save_every: 4, log_every: 1,
    tensorboard: false}}
validation: {{metrics: [], best: loss}}
""",
        encoding="utf-8",
    )
    command("prepare", experiment)[0].check()
    train(experiment, "train.accumulate=4")[0].check()
    return Tagged(experiment, folder / "teacher")


def distil(tagged: Tagged, strategy: str, folder: Path, *more: str, ranks: int = 1) -> None:
    """Train a student."""
    criterion = (
        "criterion.name=distillation",
        f"criterion.teacher={tagged.teacher}",
        f"criterion.strategy={strategy}",
        "criterion.rate=0.3",
        "criterion.queue_size=700",
    )
    given = (*criterion, "name=student", "train.seed=3", f"run_dir={folder}", *more)
    for finished in train(tagged.experiment, *given, ranks=ranks):
        finished.check()


def figures(folder: Path) -> list[float]:
    """All that an update did, update by update."""
    return [line[name] for line in records(folder) for name in FIGURES]


@pytest.mark.parametrize("strategy", QUEUES)
def test_every_layout_and_every_resume_selects_the_same_tokens(
    tagged: Tagged, tmp_path: Path, strategy: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    distil(tagged, strategy, whole, "train.accumulate=4", "train.max_updates=8")
    distil(tagged, strategy, cut, "train.accumulate=2", "train.max_updates=4", ranks=2)
    resumed = ("train.accumulate=4", "train.max_updates=8", "--resume")
    distil(tagged, strategy, cut, *resumed)
    assert figures(cut) == pytest.approx(figures(whole), rel=1e-4)
    selected = [line["kd_tokens"] for line in records(whole)]
    assert selected[0] == 1.0  # nothing to compare with yet
    assert len(selected) == 8 and all(0.02 < share < 0.6 for share in selected[1:])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("layers", [(), ("criterion.hidden={}", "criterion.attention={}")])
def test_fp16_stays_finite_for_200_updates(
    tagged: Tagged, tmp_path: Path, strategy: str, layers: tuple[str, ...]
) -> None:
    file = tmp_path / "fp16.json"
    sections = {"zero_optimization": {"stage": 1}, "fp16": {"initial_scale_power": 16}}
    file.write_text(json.dumps(sections), encoding="utf-8")
    precision = ("train.precision=fp16", f"train.deepspeed={file}")
    length = ("train.max_updates=200", "train.save_every=1000")
    distil(tagged, strategy, tmp_path / "run", *precision, *length, *layers)
    lines = records(tmp_path / "run")
    assert len(lines) == 200
    terms = (*FIGURES, *(("hidden", "attention") if layers else ()))
    applied = [line for line in lines if line["grad_norm"] is not None]  # null is infinite
    assert len(applied) >= 190  # the first few find the loss scale
    assert all(line[name] is not None for line in lines for name in terms)
    assert applied[-1]["ce"] < applied[0]["ce"]
