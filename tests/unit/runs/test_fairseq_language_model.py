"""`ds-seq import fairseq` of language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ds_seq import cli
from ds_seq.runs.open import open_run
from tests.unit.runs.fairseq_model import WIDTH, WORDS, Tensors, arguments, write

Capture = pytest.CaptureFixture[str]
ROWS, POSITIONS = WORDS + 4, 16
LM = {
    "arch": "transformer_lm_gpt",
    "task": "language_modeling",
    "source_lang": None,
    "target_lang": None,
    "decoder_layers": 2,
    "decoder_input_dim": WIDTH,
    "decoder_output_dim": WIDTH,
    "decoder_normalize_before": True,
    "decoder_learned_pos": True,
    "activation_fn": "gelu",
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": True,
    "tokens_per_sample": POSITIONS,
    "max_target_positions": None,
    "max_source_positions": None,
}


def state(tied: bool = True) -> dict[str, Tensor]:
    """Tensors of a language model by fairseq's names."""
    made = Tensors()
    made.add("decoder.embed_tokens.weight", ROWS, WIDTH)
    made.add("decoder.embed_positions.weight", POSITIONS + 2, WIDTH)
    made.layers("decoder", 2)
    made.norm("decoder.layer_norm")
    tensors = {name: value for name, value in made.state.items() if "encoder_attn" not in name}
    name = "decoder.output_projection.weight"
    tensors[name] = tensors["decoder.embed_tokens.weight"]
    if not tied:
        tensors[name] = tensors[name].flip(0)
    return tensors


def run_import(path: Path, *more: str) -> int:
    words = ["import", "fairseq", str(path), "--dict", str(path.parent / "dict.txt"), *more]
    return cli.main([*words, "--out", str(path.parent / "run")])


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_taken_whole_and_measured(
    tied: bool, tmp_path: Path, capsys: Capture
) -> None:
    tensors = state(tied)
    given = arguments(**{**LM, "share_decoder_input_output_embed": tied})
    path = write(tmp_path, tensors, given)
    assert run_import(path, "--source-lang", "en") == 0  # which compares with fairseq's formulas
    printed = capsys.readouterr().out
    assert all(name in printed for name in tensors)
    config = open_run(tmp_path / "run", "best").require_experiment()
    model = config.model
    assert (model.name, model.max_positions, config.data.language) == (
        "decoder_only",
        POSITIONS,
        "en",
    )
    text = tmp_path / "text.txt"
    text.write_text("word1 word2 word3\nword4 unknown\n")
    assert cli.main(["perplexity", str(tmp_path / "run"), "--input", str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 7


@pytest.mark.parametrize(
    ("changed", "more", "message"),
    [
        ({"adaptive_input": True}, [], "--adaptive-input True"),
        ({"decoder_input_dim": 2 * WIDTH}, [], "--decoder-input-dim 16: must be"),
        ({"add_bos_token": True}, [], "--add-bos-token True: texts begin with the end symbol"),
        ({}, ["--target-lang", "de"], "a language model has one side"),
    ],
)
def test_other_models_are_refused(
    changed: dict[str, Any], more: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path, state(), arguments(**{**LM, **changed}))
    assert run_import(path, *more) == 2
    error = capsys.readouterr().err
    (line,) = [each for each in error.splitlines() if each.startswith("ds-seq: error:")]
    assert message in line and not (tmp_path / "run").exists()
