"""`model: {name: huggingface, path: FOLDER}`: training starts there, and goes on without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ds_seq
from ds_seq import cli
from tests.system.forked import command, train
from tests.system.runs import losses

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]
FOLDERS = ROOT / "tests" / "data" / "huggingface"
EXAMPLE = ROOT / "configs" / "experiments" / "finetune_huggingface.yaml"
ZERO = ROOT / "configs" / "ds_config"
CODES = "{huggingface: {source_code: eng_Latn, target_code: deu_Latn}}"

EXPERTS = ("nllb_moe", "switch")


def _options(folder: Path, tmp_path: Path, name: str) -> list[str]:
    """The shipped experiment with the model of a folder and a few lines of text."""
    lines = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["lines"] * 4
    for side, text in (("source", lines), ("target", lines[::-1])):
        (tmp_path / side).write_text("\n".join(text) + "\n", encoding="utf-8")
    files = f"{{source: {tmp_path / 'source'}, target: {tmp_path / 'target'}}}"
    return [
        f"model.path={folder}",
        *([f"data.vocab={CODES}"] if name.startswith("nllb") else []),
        f"data.raw.train={files}",
        f"data.raw.valid={files}",
        "data.clean={drop_duplicates: false, drop_identical: false}",
        f"data.dir={tmp_path / 'data'}",
        "data.max_source_length=64",
        "data.max_target_length=64",
        *(f"model.{each}dropout=0.0" for each in ("", "attention_", "activation_")),
        *(["model.moe={capacity_factor: null, noise: none}"] if name in EXPERTS else []),
        "optimizer.lr=0.003",
        "scheduler={name: constant, warmup_updates: 1}",
        "train={max_tokens: 400, log_every: 1, tensorboard: false}",
        "train.validate_every=null",
        "train.save_every=3",
    ]


@pytest.mark.parametrize(
    ("name", "stage", "precision"),
    [
        ("nllb_moe", 3, "bf16"),
        *(
            pytest.param(name, stage, precision, marks=pytest.mark.slow)
            for name, stage, precision in (
                ("nllb_moe", 3, "fp32"),
                ("nllb_moe", 2, "fp16"),
                ("switch", 3, "fp32"),
                ("switch", 3, "bf16"),
                ("switch", 1, "fp16"),
                ("bart", 3, "fp16"),
                ("fsmt", 2, "bf16"),
                ("t5_1_1", 1, "bf16"),
            )
        ),
    ],
)
def test_a_folder_is_fine_tuned_and_resumed_without_it(
    name: str, stage: int, precision: str, tmp_path: Path
) -> None:
    folder, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(FOLDERS / name, folder)
    deepspeed = f"train.deepspeed={ZERO / f'zero{stage}.json'}"
    options = [*_options(folder, tmp_path, name), deepspeed, f"train.precision={precision}"]
    assert cli.main(["prepare", str(EXAMPLE), *options]) == 0
    for done in train(EXAMPLE, *options, "train.max_updates=6", f"run_dir={run}", ranks=2):
        assert done.code == 0, done.err
    found = losses(run)
    assert found[6] < found[1]
    shutil.rmtree(folder)
    (last,) = train(run / "config.yaml", "train.max_updates=8", "--resume")
    assert last.code == 0, last.err
    assert losses(run)[8] < found[1]
    translated = ds_seq.load(run, checkpoint="last").translate(["Select the type."], max_len_b=5)
    assert len(translated) == 1


def test_the_first_weights_are_those_of_the_folder(tmp_path: Path) -> None:
    """Without an update to speak of, the run translates as transformers does."""
    folder = FOLDERS / "marian"
    run = tmp_path / "run"
    options = [*_options(folder, tmp_path, "marian"), "optimizer.lr=1e-12"]
    assert cli.main(["prepare", str(EXAMPLE), *options]) == 0
    limits = ["train.max_updates=1", "train.save_every=1", f"run_dir={run}"]
    (done,) = train(EXAMPLE, *options, *limits)
    assert done.code == 0, done.err
    assert f"starting with the weights of {folder}" in done.err and "frozen: emb" in done.err
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    limits = {"beam": 4, "max_len_a": 0.0, "max_len_b": 38, "length_penalty": 1.0}
    answers = ds_seq.load(run, checkpoint="last").translate(expected["lines"], **limits)
    pairs = [pair for pair in zip(answers, expected["answers"]["4"], strict=True) if pair[1]]
    assert pairs and all(ours == theirs for ours, theirs in pairs)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    (done,) = command("check", EXAMPLE, f"model.path={tmp_path / 'none'}")
    assert done.code == 2 and "model.path: " in done.err and "no such folder" in done.err
    assert "Traceback" not in done.err
