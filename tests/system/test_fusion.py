"""A language model takes part in the search of the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import ds_seq
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import text_batch
from tests.batches import EOS
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, records

LANGUAGE_MODEL = """\
name: lm
run_dir: {folder}/lm
data:
  language: de
  dir: {data}
  raw: {{train: {{text: {lab}/text/train.de}}, valid: {{text: {lab}/text/valid.de}}}}
  vocab: {{size: {size}, model_type: bpe}}
task: {{name: language_modeling, blocks: line}}
model: {{name: decoder_only, d_model: 16, num_heads: 2, ffn_dim: 32, decoder_layers: 1}}
train: {{max_updates: 3}}
"""


def _language_model(lab: Lab, folder: Path, size: int = 250) -> Path:
    """Train a language model with the vocabulary of the translations, or one of another size."""
    data, experiment = folder / "data", folder / "lm.yaml"
    data.mkdir(parents=True)
    if size == 250:
        shutil.copy(lab.folder / "data" / "vocab.model", data)
    text = LANGUAGE_MODEL.format(folder=folder, data=data, lab=lab.folder, size=size)
    experiment.write_text(text, encoding="utf-8")
    command("prepare", experiment)[0].check()
    train(experiment, *NO_VALIDATION, "train.tensorboard=false")[0].check()
    return folder / "lm"


@pytest.fixture(scope="module")
def language_model(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the target."""
    return _language_model(lab, tmp_path_factory.mktemp("lm"))


def _translation(lab: Lab, run: Path, out: Path, *options: str | Path) -> str:
    few = out.with_suffix(".en")
    few.write_text("".join(lab.text("test.en").open().readlines()[:12]))
    generate(run, "--input", few, "--output", out, *options)[0].check()
    return out.read_text()


def test_it_changes_translations_by_its_weight_alone(
    lab: Lab, dense_run: Path, language_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fused = ("--lm", language_model, "--lm-weight")
    plain = _translation(lab, dense_run, out)
    assert _translation(lab, dense_run, out, *fused, "0") == plain
    changed = _translation(lab, dense_run, out, *fused, "3")
    assert changed != plain
    assert _translation(lab, dense_run, out, *fused, "3", "--max-sentences", "1") == changed


def test_it_judges_translations_as_a_text(
    lab: Lab, dense_run: Path, language_model: Path, tmp_path: Path
) -> None:
    """Its part of a score is the mean log-probability of the tokens and of the end."""
    few = {}
    for side in ("en", "de"):
        few[side] = tmp_path / side
        few[side].write_text("".join(lab.text(f"test.{side}").open().readlines()[:6]))
    files = ("--source", few["en"], "--hypotheses", few["de"])

    def scores(*options: str | Path) -> list[float]:
        found = command("rescore", dense_run, *files, *options)[0].check().out
        return [float(line.split("\t")[1]) for line in found.splitlines()]

    own = scores()
    judged = scores("--lm", language_model, "--lm-weight", "0.5")
    loaded = ds_seq.load(language_model)
    for line, one, both in zip(few["de"].open(), own, judged, strict=True):
        ids = loaded.card.tokenizers.target.encode(line.strip())
        batch = text_batch(TokenBlock.of([[*ids, EOS]]), loaded.card.tokenizers.target.symbols)
        with torch.inference_mode():
            found = loaded.module(batch.inputs).logits.log_softmax(-1)
        mean = found.gather(1, batch.labels[batch.mask][:, None]).mean()
        assert both - one == pytest.approx(0.5 * float(mean), abs=1e-4)
    tuned = ("--tune", few["de"], "--lm", language_model)
    done = command("rescore", dense_run, *files, *tuned)[0].check()
    assert "--channel-weight 0 --lm-weight 0: BLEU 100.00" in done.err


def test_what_is_no_language_model_of_the_target_is_refused(
    lab: Lab, dense_run: Path, tmp_path: Path
) -> None:
    other = _language_model(lab, tmp_path / "other", size=200)
    cases = {
        other: "has another vocabulary than the target of the translation",
        dense_run: "is a model of task translation; give one of task language_modeling",
        tmp_path / "none": "no such run folder",
    }
    for model, words in cases.items():
        refused = generate(dense_run, "--input", lab.text("test.en"), "--lm", model)[0]
        assert refused.code == 2 and words in refused.err
        assert refused.err.count("\n") == 1 and "Traceback" not in refused.err


@pytest.mark.slow
def test_all_commands_that_search_take_it(
    lab: Lab, dense_run: Path, language_model: Path, tmp_path: Path
) -> None:
    settings = (*TINY, f"run_dir={tmp_path / 'run'}", f"generation.lm={language_model}")
    limits = ("train.max_updates=2", "train.validate_every=1", "validation.max_sentences=5")
    train(lab.dense, *settings, *limits)[0].check()
    assert len(records(tmp_path / "run", "valid")) == 2
    label = ("pseudo-label", dense_run, "--data", lab.folder / "data", "--split", "test")
    command(*label, "--out", tmp_path / "labels", "--lm", language_model)[0].check()
