"""A model of gated convolutions from training to translation, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, Lab
from tests.system.test_learning import bleu

ENOUGH = 40.0
"""In as many updates, a Transformer reaches more; without training it is near 0."""

SETTINGS = ("train.max_tokens=4000", "train.tensorboard=false", *NO_VALIDATION)


def _experiment(lab: Lab, folder: Path, layers: list[list[int]]) -> Path:
    """Write the dense experiment with another model."""
    fields = yaml.safe_load(lab.dense.read_text(encoding="utf-8"))
    fields["model"] = {
        "name": "convolutional",
        "embedding_dim": layers[0][0],
        "output_dim": layers[0][0],
        "share_embeddings": "all",
        "encoder_convolutions": layers,
        "decoder_convolutions": layers,
    }
    file = lab.folder / f"convolutional_{folder.name}.yaml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return file


def _train(experiment: Path, folder: Path, updates: int, *more: str, ranks: int = 1) -> Path:
    settings = (*SETTINGS, f"train.max_updates={updates}", f"run_dir={folder}", *more)
    train(experiment, *settings, ranks=ranks)[0].check()
    return folder


def test_a_run_resumes_at_another_layout_and_translates(lab: Lab, tmp_path: Path) -> None:
    stages = {stage: tmp_path / f"{stage}.json" for stage in (1, 3)}
    for stage, file in stages.items():
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    experiment = _experiment(lab, tmp_path, [[16, 3], [24, 2]])
    run = _train(experiment, tmp_path / "run", 3, f"train.deepspeed={stages[3]}", ranks=2)
    _train(experiment, run, 5, f"train.deepspeed={stages[1]}", "--resume")
    export = tmp_path / "export"
    command("export", run, "--out", export)[0].check()
    texts = []
    for model in (run, export):
        out = tmp_path / f"{model.name}.txt"
        options = ("--input", lab.text("test.en"), "--output", out, "--beam", "3")
        generate(model, *options)[0].check()
        texts.append(out.read_text())
    assert texts[0].strip() and texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_learns(lab: Lab, tmp_path: Path) -> None:
    run, experiment = tmp_path / "run", _experiment(lab, tmp_path, [[64, 3]] * 2)
    train(experiment, f"run_dir={run}", timeout=500.0)[0].check()
    finished = generate(run, "--output", tmp_path / "out", timeout=100.0)[0].check()
    print(bleu(finished))
    assert bleu(finished) > ENOUGH
