"""The versions of a run's config, from its start through every resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.changes import DATA, GROUP, VALID_DATA
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump, read_experiment
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.names import HISTORY_FILE
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.training.history import (
    History,
    first_version,
    resumed,
    teacher_fingerprint,
)
from tests.unit.runs import made

FACTS: dict[str, Any] = {DATA: "a", VALID_DATA: "b", GROUP: 1, "deepspeed": {}}
BASE: dict[str, Any] = {
    "name": "x",
    "data": {"source_lang": "en", "target_lang": "de", "dir": "data"},
    "validation": {"metrics": [], "best": "loss"},
}


def experiment(*overrides: str) -> ExperimentConfig:
    return read_experiment(BASE, overrides)


def resume(
    folder: Path, update: int, *overrides: str, allowed: tuple[str, ...] = (), **facts: Any
) -> History:
    history = resumed(folder, update, experiment(*overrides), {**FACTS, **facts}, allowed)
    history.write(folder)
    return history


@pytest.fixture
def run(tmp_path: Path) -> Path:
    first_version(experiment(), FACTS).write(tmp_path)
    return tmp_path


def test_every_version_is_kept_with_the_update_since_which_it_holds(run: Path) -> None:
    changed = "since update 200: optimizer.lr: 0.0005 -> 0.5 (changes the training)"
    assert resume(run, 200, "optimizer.lr=0.5").notes == (changed,)
    again = resume(run, 300, "optimizer.lr=0.5", "train.max_updates=9")
    assert again.notes == (
        changed,
        "since update 300: train.max_updates: 100000 -> 9",
    )
    versions = json.loads((run / HISTORY_FILE).read_text())["versions"]
    assert [version["update"] for version in versions] == [0, 200, 300]
    assert [version["config"]["optimizer"]["lr"] for version in versions] == [0.0005, 0.5, 0.5]


def test_a_teacher_is_known_by_its_weights(tmp_path: Path, vocab: SentencePieceTokenizer) -> None:
    """A run that teaches may be trained further, or replaced, under the same name."""
    teacher = made.experiment({})
    models = [build_model(teacher.model, len(vocab), 1, 0, seed=seed) for seed in (1, 2)]
    runs = [
        made.write_run(tmp_path / name, teacher, vocab, {1: model})
        for name, model in zip("ab", models, strict=True)
    ]

    def found(*names: Path) -> str | None:
        named = f"[{', '.join(map(str, names))}]"
        taught = experiment(f"criterion={{name: distillation, teacher: {named}}}")
        return teacher_fingerprint(taught, None)

    first = found(runs[0])
    assert first == found(runs[0]) and first is not None
    assert len({first, found(runs[1]), found(*runs)}) == 3
    runs[0].rename(tmp_path / "old")
    runs[1].rename(runs[0])
    assert found(runs[0]) != first == found(tmp_path / "old")
    assert teacher_fingerprint(experiment(), None) is None


def test_an_unchanged_config_is_no_new_version(run: Path) -> None:
    assert len(resume(run, 200).versions) == 1
    assert not resume(run, 200).notes


def test_a_version_that_has_made_no_update_is_replaced(run: Path) -> None:
    resume(run, 200, "optimizer.lr=0.5")
    history = resume(run, 200, "optimizer.lr=0.6")  # killed before its first checkpoint
    assert [version.update for version in history.versions] == [0, 200]
    assert [change.old for change in history.found] == [0.0005], "compared with the checkpoint's"
    assert len(resume(run, 200).versions) == 1


def test_an_earlier_checkpoint_drops_later_versions(run: Path) -> None:
    resume(run, 200, "optimizer.lr=0.5")
    resume(run, 300, "optimizer.lr=0.6")
    history = resume(run, 250, "optimizer.lr=0.5")
    assert [version.update for version in history.versions] == [0, 200] and not history.found


def test_nonsense_is_refused_unless_allowed(run: Path) -> None:
    with pytest.raises(UserError, match=r"train\.seed: 1 -> 2: is another order of the data"):
        resume(run, 200, "train.seed=2")
    with pytest.raises(UserError, match=r"data\.train: other shards: .*--allow-change data\.train"):
        resume(run, 200, **{DATA: "c"})
    history = resume(run, 200, "train.seed=2", allowed=("train.seed", "data.train"), **{DATA: "c"})
    assert {change.key for change in history.found} == {"train.seed", DATA}
    assert not resume(run, 300, "train.seed=2", **{DATA: "c"}).found, "allowed once is enough"


def test_scores_are_compared_only_if_they_mean_the_same(run: Path) -> None:
    assert resume(run, 200, "optimizer.lr=0.5").scores_compare
    changed = resume(run, 200, "criterion.label_smoothing=0.2")
    assert not changed.scores_compare
    assert "not compared with later ones, because of criterion.label_smo" in changed.notes[-1]


def test_an_older_run_is_compared_with_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(experiment()))
    with pytest.raises(UserError, match=r"train\.seed"):
        resume(tmp_path, 200, "train.seed=2")
    history = resume(tmp_path, 200)
    assert not history.found and "cannot verify that the data are those" in history.notes[0]
    with pytest.raises(UserError, match="other shards"):  # from now on they are recorded
        resume(tmp_path, 300, **{DATA: "c"})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"versions": []}', '{"versions": [{}]}'])
def test_a_damaged_history_is_named(run: Path, content: str) -> None:
    (run / HISTORY_FILE).write_text(content)
    with pytest.raises(UserError, match=r"history\.json: is damaged .*remove it"):
        resume(run, 200)
