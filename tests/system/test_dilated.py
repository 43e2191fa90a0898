"""A model with dilated attention from training to translation, through the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command, generate, train
from tests.system.mixers import Mixers, translation
from tests.system.runs import Lab
from tests.system.test_learning import ENOUGH, bleu

SEGMENTS = "{name: dilated, segment_lengths: [4, 8], dilations: [1, 2]}"
DILATED = Mixers((f"model.encoder_mixer={SEGMENTS}", f"model.decoder_mixer={SEGMENTS}"))


@pytest.fixture(scope="module")
def run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with experts that began on two ranks and was resumed on one."""
    folder = tmp_path_factory.mktemp("dilated") / "run"
    DILATED.train(lab.moe, folder, 3, ranks=2)
    return DILATED.train(lab.moe, folder, 4, "train.expert_parallel=1", "--resume")


def test_an_export_translates_like_its_run_whatever_the_batch(
    lab: Lab, run: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    command("export", run, "--out", export)[0].check()
    expected = translation(lab, tmp_path, run, "--beam", "4")
    assert expected.strip()
    assert translation(lab, tmp_path, export, "--beam", "4", "--max-sentences", "1") == expected


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
    _, pruned = DILATED.make_others(lab, tmp_path)
    assert "decoder 0" in pruned


@pytest.mark.slow
def test_attention_is_a_start_and_not_an_end(lab: Lab, tmp_path: Path) -> None:
    mixers = ("model.encoder_mixer=attention", "model.decoder_mixer=attention")
    plain = DILATED.train(lab.dense, tmp_path / "plain", 1, *mixers)
    run = DILATED.train(lab.dense, tmp_path / "dilated", 1, f"train.init_from={plain}")
    refused = DILATED.refused(lab, tmp_path, *mixers, f"train.init_from={run}")
    assert "has model.encoder_mixer" in refused.err
    for form in ("ctranslate2", "hf"):
        refused = command("export", run, "--format", form, "--out", tmp_path / form)[0]
        assert refused.code == 2
        assert "model.encoder_mixer" in refused.err and "Traceback" not in refused.err
