"""`ds-seq import fairseq` of LSTM models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ds_seq import cli
from ds_seq.runs.open import open_run
from tests.unit.runs.fairseq_model import WORDS, Tensors, arguments, write

ROWS = WORDS + 4  # with the special symbols
SIZES = {
    "arch": "lstm",
    "encoder_embed_dim": 8,
    "decoder_embed_dim": 8,
    "encoder_hidden_size": 6,
    "decoder_hidden_size": 10,
    "decoder_out_embed_dim": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_bidirectional": True,
    "decoder_attention": "1",
    "encoder_dropout_in": 0.1,
    "encoder_dropout_out": 0.0,
    "decoder_dropout_in": 0.1,
    "decoder_dropout_out": 0.0,
    "share_all_embeddings": False,
}


def state(shares: bool = False) -> dict[str, Tensor]:
    """Tensors of an LSTM model by fairseq's names."""
    made = Tensors()
    made.add("encoder.embed_tokens.weight", ROWS, 8)
    made.add("decoder.embed_tokens.weight", ROWS, 8)
    for layer, inputs in enumerate((8, 12)):
        for way in ("", "_reverse"):
            made.add(f"encoder.lstm.weight_ih_l{layer}{way}", 24, inputs)
            made.add(f"encoder.lstm.weight_hh_l{layer}{way}", 24, 6)
            made.add(f"encoder.lstm.bias_ih_l{layer}{way}", 24)
            made.add(f"encoder.lstm.bias_hh_l{layer}{way}", 24)
    for layer, inputs in enumerate((18, 10)):
        made.add(f"decoder.layers.{layer}.weight_ih", 40, inputs)
        made.add(f"decoder.layers.{layer}.weight_hh", 40, 10)
        made.add(f"decoder.layers.{layer}.bias_ih", 40)
        made.add(f"decoder.layers.{layer}.bias_hh", 40)
    made.add("decoder.attention.input_proj.weight", 12, 10)
    made.add("decoder.attention.output_proj.weight", 10, 22)
    for place in ("encoder_hidden_proj", "encoder_cell_proj"):
        made.linear(f"decoder.{place}", 10, 12)
    made.linear("decoder.additional_fc", 8, 10)
    if shares:
        made.state["encoder.embed_tokens.weight"] = made.state["decoder.embed_tokens.weight"]
    else:
        made.linear("decoder.fc_out", ROWS, 8)
    return made.state


def run_import(path: Path, out: Path) -> int:
    words = ["import", "fairseq", str(path), "--dict", str(path.parent / "dict.txt")]
    return cli.main([*words, "--out", str(out)])


@pytest.mark.parametrize("shares", [False, True])
def test_a_model_is_taken_whole(
    shares: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = state(shares)
    path = write(tmp_path, tensors, arguments(**{**SIZES, "share_all_embeddings": shares}))
    assert run_import(path, tmp_path / "run") == 0  # which compares with fairseq's formulas
    printed = capsys.readouterr().out
    assert all(name in printed for name in tensors)
    model = open_run(tmp_path / "run", "best").model_config
    assert (model.name, model.layers_of("decoder")) == ("recurrent", 2)
    assert model.shares_inputs == shares


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        (
            {"arch": "masked_lm"},
            {},
            "--arch masked_lm: only Transformers, BART, RoBERTa, lightconv and fconv of fairseq",
        ),
        ({"encoder_hidden_size": None}, {}, "--encoder-hidden-size None: the checkpoint should"),
        ({"decoder_hidden_size": 9}, {}, "the arguments of the checkpoint say"),
        ({}, {"decoder.adaptive_softmax.head": torch.ones(2)}, "has decoder.adaptive_softmax.head"),
        ({"criterion": "adaptive_loss"}, {}, "--criterion adaptive_loss"),
    ],
)
def test_what_is_not_there_is_named(
    changes: dict[str, object],
    extra: dict[str, Tensor],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path, {**state(), **extra}, arguments(**{**SIZES, **changes}))
    assert run_import(path, tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
