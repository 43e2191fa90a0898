"""A language model as the input of the encoder, through the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import ds_seq
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses

LANGUAGE_MODEL = """\
name: lm
run_dir: {folder}/lm
data:
  language: en
  dir: {folder}/data
  raw: {{train: {{text: {text}/train.en}}, valid: {{text: {text}/valid.en}}}}
  vocab: {{size: {size}, model_type: bpe}}
task: {{name: language_modeling, blocks: line}}
model: {{name: decoder_only, d_model: 8, num_heads: 2, ffn_dim: 16, decoder_layers: 2}}
train: {{max_updates: 3}}
"""
SETTINGS = (*TINY, *NO_VALIDATION, "model.max_positions=100", "train.log_every=1")


def _language_model(lab: Lab, folder: Path, size: int = 250) -> Path:
    """Train a language model with the vocabulary of the translations, or one of another size."""
    (folder / "data").mkdir(parents=True)
    if size == 250:
        shutil.copy(lab.folder / "data" / "vocab.model", folder / "data")
    experiment = folder / "lm.yaml"
    text = LANGUAGE_MODEL.format(folder=folder, text=lab.folder / "text", size=size)
    experiment.write_text(text, encoding="utf-8")
    command("prepare", experiment)[0].check()
    train(experiment, *NO_VALIDATION, "train.tensorboard=false")[0].check()
    return folder / "lm"


def _settings(language_model: Path, run: Path, updates: int, more: str = "") -> tuple[str, ...]:
    section = f"model.encoder_input={{path: {language_model}{more}}}"
    return (*SETTINGS, section, f"run_dir={run}", f"train.max_updates={updates}")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(ds_seq.load(run, checkpoint="last").module.state_dict())


def test_it_is_trained_resumed_and_used_without_the_language_model(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    folder = _language_model(lab, tmp_path / "text")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = train(lab.dense, *_settings(folder, whole, 4))[0].check().err
    assert f"parameters of {folder}, frozen" in said
    train(lab.dense, *_settings(folder, parts, 2))[0].check()
    train(lab.dense, *_settings(folder, parts, 4), "--resume")[0].check()
    assert losses(whole) == losses(parts)
    before, after = _weights(folder), _weights(whole)
    assert all(torch.equal(after[name], value) for name, value in _weights(parts).items())
    for name, value in before.items():
        assert torch.equal(after[f"encoder_input.model.{name}"], value), name
    shutil.rmtree(tmp_path / "text")  # not needed any more
    source, out = lab.text("test.en"), tmp_path / "out"
    few = tmp_path / "few.en"
    few.write_text("".join(source.open().readlines()[:8]))
    texts = []
    for models in ((whole,), (whole, "--max-sentences", "1"), (whole, dense_run)):
        files = ("--checkpoint", "last", "--input", few, "--output", out)
        generate(*models, *files)[0].check()
        texts.append(out.read_text())
    assert texts[0] == texts[1] and texts[0].count("\n") == 8
    start = (f"train.init_from={whole}", "train.init_checkpoint=last", "train.max_updates=1")
    train(whole / "config.yaml", f"run_dir={tmp_path / 'new'}", *start)[0].check()


def test_a_model_that_does_not_fit_is_refused(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    other = _language_model(lab, tmp_path / "other", size=200)
    cases = {
        other: "model.encoder_input.path: " + str(other) + " has vocabulary",
        dense_run: f"{dense_run} is a model transformer; name a run",
        tmp_path / "none": "not a folder with config.yaml; name the run folder",
    }
    for model, words in cases.items():
        refused = train(lab.dense, *_settings(model, tmp_path / "run", 2))[0]
        assert refused.code == 2 and words in refused.err, refused.err
        assert refused.err.strip().count("\n") == 0 and "Traceback" not in refused.err
    changed = _settings(other, tmp_path / "run", 2, ", model: {positions: rotary}")
    refused = train(lab.dense, *changed)[0]
    assert refused.code == 2 and "model.encoder_input" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
@pytest.mark.parametrize("weights", ["frozen", "trained"])
def test_ranks_change_nothing(lab: Lab, tmp_path: Path, stage: str, weights: str) -> None:
    folder = _language_model(lab, tmp_path / "text")
    more = f", weights: {weights}, layers: mix, model: {{dropout: 0.0}}"
    same = ("model.dropout=0.0", f"train.deepspeed=configs/ds_config/{stage}.json")
    for ranks in (1, 2):
        settings = _settings(folder, tmp_path / str(ranks), 2, more)
        group = f"train.accumulate={2 // ranks}"
        train(lab.dense, *settings, *same, group, ranks=ranks)[0].check()
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert one.keys() == two.keys() and two == pytest.approx(one, rel=1e-4)
