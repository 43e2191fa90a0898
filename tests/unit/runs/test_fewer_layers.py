"""Models that are loaded with some of their layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq import cli, load
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.open import ModelParts, load_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import model_tensors
from tests.unit.runs.made import experiment, write_run

KEPT = {"encoder": [1, 2, 4], "decoder": [0, 3]}
LISTS = [f"--{stack}-{{}}={','.join(map(str, kept))}" for stack, kept in KEPT.items()]
KEEP, COPY = ([each.format(name) for each in LISTS] for name in ("layers-to-keep", "copy"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vocab: SentencePieceTokenizer) -> Path:
    """A run of 5 and 4 layers, in which the number of experts differs from layer to layer."""
    folder = tmp_path_factory.mktemp("runs") / "deep"
    model: dict[str, Any] = {"encoder_layers": 5, "decoder_layers": 4, "max_positions": 40}
    model["moe"] = {"num_experts": [2, 3, 4, 2], "every": 2}
    config = experiment(model)
    return write_run(
        folder, config, vocab, {1: build_model(config.model, len(vocab), 1, 0, seed=3)}
    )


def _call(*arguments: Any) -> int:
    return cli.main([*map(str, arguments)])


def test_kept_layers_are_those_that_make_student_copies(run: Path, tmp_path: Path) -> None:
    export, student = tmp_path / "kept.safetensors", tmp_path / "student.safetensors"
    assert _call("export", run, "--out", export, *KEEP) == 0
    assert _call("make-student", run, "--out", student, *COPY) == 0
    parts = ModelParts(layers=KEPT)
    expected = dict(model_tensors(load_run(student, "best").model))
    for loaded in (load_run(run, "best", parts=parts), load_run(export, "best")):
        found = dict(model_tensors(loaded.model))
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        assert loaded.require_experiment().model == loaded.model_config


def test_generation_with_kept_layers_is_that_of_the_student(run: Path, tmp_path: Path) -> None:
    student, text = tmp_path / "student.safetensors", tmp_path / "text"
    assert _call("make-student", run, "--out", student, *COPY) == 0
    text.write_text("ab c\nb ca\n", encoding="utf-8")
    options = ("--input", text, "--beam", 2, "--device", "cpu", "--output")
    assert _call("generate", run, *KEEP, *options, tmp_path / "kept") == 0
    assert _call("generate", student, *options, tmp_path / "same") == 0
    assert (tmp_path / "kept").read_text() == (tmp_path / "same").read_text()
    texts = ["ab c", "b ca"]
    made = [load(student).translate(texts), load(run, layers=KEPT).translate(texts)]
    assert made[0] == made[1] != load(run).translate(texts)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--encoder-layers-to-keep=0,5", "there is no layer 5; the encoder has 5, from 0 to 4"),
        ("--decoder-layers-to-keep=1,1", "1,1: name each layer once"),
        ("--decoder-layers-to-keep=1,x", "should be layers such as 0,2,4, not '1,x'"),
        ("--encoder-layers-to-keep=0 --format=ctranslate2", "--format safetensors only"),
    ],
)
def test_layers_that_cannot_be_kept_are_refused(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, expected: str
) -> None:
    assert _call("export", run, "--out", tmp_path / "x.safetensors", *option.split()) == 2
    assert expected in capfd.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_part_belongs_to_all_layers(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belongs to the whole model"):
        load_run(run, "best", parts=ModelParts(file=tmp_path / "part", layers=KEPT))
