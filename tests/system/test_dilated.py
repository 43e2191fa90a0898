"""A model with dilated attention from training to translation, through the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab
from tests.system.test_learning import ENOUGH, bleu

SEGMENTS = "{name: dilated, segment_lengths: [4, 8], dilations: [1, 2]}"
DILATED = (
    *TINY,
    *NO_VALIDATION,
    f"model.encoder_mixer={SEGMENTS}",
    f"model.decoder_mixer={SEGMENTS}",
    "optimizer.lr=0.02",
    "scheduler.warmup_updates=1",
)


def _train(experiment: Path, folder: Path, updates: int, *more: str, ranks: int = 1) -> Path:
    settings = (*DILATED, f"train.max_updates={updates}", f"run_dir={folder}", *more)
    train(experiment, *settings, ranks=ranks)[0].check()
    return folder


def _translation(lab: Lab, tmp_path: Path, *arguments: str | Path) -> str:
    out = tmp_path / "out"
    generate(*arguments, "--input", lab.text("test.en"), "--output", out)[0].check()
    return out.read_text()


@pytest.fixture(scope="module")
def run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with experts that began on two ranks and was resumed on one."""
    folder = tmp_path_factory.mktemp("dilated") / "run"
    _train(lab.moe, folder, 3, ranks=2)
    return _train(lab.moe, folder, 4, "train.expert_parallel=1", "--resume")


def test_an_export_translates_like_its_run_whatever_the_batch(
    lab: Lab, run: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    command("export", run, "--out", export)[0].check()
    expected = _translation(lab, tmp_path, run, "--beam", "4")
    assert expected.strip()
    assert _translation(lab, tmp_path, export, "--beam", "4", "--max-sentences", "1") == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_with_dilated_attention_learns(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    segments = "{name: dilated, segment_lengths: [8, 32], dilations: [1, 2]}"
    mixers = (f"model.{stack}_mixer={segments}" for stack in ("encoder", "decoder"))
    train(lab.dense, f"run_dir={run}", *mixers, timeout=500.0)[0].check()
    finished = generate(run, "--output", tmp_path / "out", timeout=100.0)[0].check()
    print(bleu(finished))
    assert bleu(finished) > ENOUGH


@pytest.mark.slow
def test_other_models_are_made_of_it(lab: Lab, tmp_path: Path) -> None:
    dense = _train(lab.dense, tmp_path / "dense", 4, "train.save_every=2")
    _train(lab.moe, tmp_path / "upcycled", 1, f"train.init_from={dense}", ranks=2)
    command("average", dense, "--last", "2", "--out", tmp_path / "mean")[0].check()
    student = ("make-student", dense, "--out", tmp_path / "student", "--decoder-layers", "1")
    command(*student)[0].check()
    valid = ("--calibration", lab.text("valid.en"), "--calibration-target", lab.text("valid.de"))
    pruned = command("prune-heads", dense, "--keep", "1", *valid, "--out", tmp_path / "pruned")[0]
    assert "decoder 0" in pruned.check().out
    for each in ("mean", "student", "pruned"):
        assert _translation(lab, tmp_path, tmp_path / each).strip()


@pytest.mark.slow
def test_attention_is_a_start_and_not_an_end(lab: Lab, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    mixers = ("model.encoder_mixer=attention", "model.decoder_mixer=attention")
    _train(lab.dense, plain, 1, *mixers)
    run = _train(lab.dense, tmp_path / "dilated", 1, f"train.init_from={plain}")
    settings = (*DILATED, *mixers, f"train.init_from={run}", f"run_dir={tmp_path / 'other'}")
    refused = train(lab.dense, *settings)[0]
    assert refused.code == 2
    assert "has model.encoder_mixer" in refused.err and "Traceback" not in refused.err
    for form in ("ctranslate2", "hf"):
        refused = command("export", run, "--format", form, "--out", tmp_path / form)[0]
        assert refused.code == 2
        assert "model.encoder_mixer" in refused.err and "Traceback" not in refused.err
