"""`ds-seq make-student` of a Hugging Face folder, changes of the student, and depths untested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq import cli
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.runs.open import load_run
from ds_seq.weights.fill import model_tensors
from tests.unit.commands.test_make_student import lab

__all__ = ["lab"]
BART = Path(__file__).parents[2] / "data" / "huggingface" / "bart"
FOREIGN = ("--source-lang", "en", "--target-lang", "de", "--no-compare")


def _call(*words: object) -> int:
    return cli.main(["make-student", *map(str, words)])


def test_a_student_of_all_layers_computes_what_the_folder_does(tmp_path: Path) -> None:
    teacher = import_folder(BART, "bart", Languages("en", "de"))
    depth: Any = teacher.config.model
    copies = ("--encoder-layers", depth.encoder_layers, "--decoder-layers", depth.decoder_layers)
    assert _call(BART, "--out", tmp_path / "all", *copies, *FOREIGN) == 0
    student = load_run(tmp_path / "all", "best")
    symbols = teacher.tokenizers.symbols
    ids = teacher.tokenizers.source.encode("a b c")
    inputs = inputs_of(teacher.tokenizers.source.symbols.framed(ids), [symbols.start, *ids])
    with torch.no_grad():
        expected, found = (model(inputs).logits for model in (teacher.model, student.model))
    assert torch.equal(expected, found)


def test_layers_are_those_of_the_folder_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = dict(model_tensors(import_folder(BART, "bart", Languages("en", "de")).model))
    out = tmp_path / "one"
    changes = ("model.dropout=0.25", "train.max_updates=7")
    assert _call(BART, *changes, "--out", out, "--encoder-copy", "1", *FOREIGN) == 0
    student = load_run(out, "best")
    for name, value in model_tensors(student.model):
        source = name.replace("encoder.layers.0.", "encoder.layers.1.")
        assert torch.equal(value, teacher[source]), name
    experiment = student.require_experiment()
    assert (experiment.model.dropout, experiment.train.max_updates) == (0.25, 7)
    printed = capsys.readouterr().out
    assert f"ds-seq import huggingface {BART} --out {tmp_path / 'bart-teacher'}" in printed
    assert f'"teacher": "{tmp_path / "bart-teacher"}"' in printed


def test_untested_depths_are_reported(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(lab / "dense", "--out", tmp_path / "five", "--encoder-layers", 5) == 0
    error = capsys.readouterr().err
    assert "no tested choice of 5 of 6 layers (encoder)" in error and "(decoder)" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--decoder-layers", "1", *FOREIGN[:2], "--no-compare"), "add --target-lang"),
        (("--decoder-layers", "1", *FOREIGN, "--checkpoint", "update_3"), "holds one state"),
        (("--decoder-layers", "1", *FOREIGN, "model.ffn_dim=8"), "leave out changes of the model"),
        (("--decoder-layers", "1", *FOREIGN, "model.dropuot=0"), "did you mean 'dropout'"),
        (("--decoder-layers", "9", *FOREIGN), "--decoder-layers 9: must be from 1 to"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert _call(BART, "--out", tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_other_commands_say_how_to_import_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(BART), "--out", "never"]) == 2
    assert f"make a run of it first: ds-seq import huggingface {BART}" in capsys.readouterr().err
