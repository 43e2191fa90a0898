"""`ds-seq import fairseq` of language models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq import cli
from ds_seq.runs.formats.fairseq.stitching import read_checkpoint
from ds_seq.runs.formats.imported import text_inputs_of
from ds_seq.runs.open import load_run, open_run
from tests.data.fairseq import LANGUAGE_MODELS, write_recorded_checkpoints
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
BANDS = {
    "adaptive_input": True,
    "adaptive_input_cutoff": "9,15",
    "adaptive_softmax_cutoff": "9,15",
    "adaptive_softmax_factor": 4,
}
FCONV = {"arch": "fconv_lm", "decoder_layers": "[(8, 3)]"}
LSTM = {
    "arch": "lstm_lm",
    **{f"decoder_{name}": 8 for name in ("hidden_size", "out_embed_dim")},
    **{f"decoder_{name}": 0.1 for name in ("dropout_in", "dropout_out")},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that fairseq wrote, what it computed, and the dictionary that they are for."""
    return write_recorded_checkpoints(tmp_path_factory.mktemp("recorded"), ["language_models"])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_model_computes_what_fairseq_computed(
    name: str, recorded: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--dict", str(recorded / "spm" / "dict.en.txt"), "--out", str(tmp_path / "run")]
    words += ["--sentencepiece", str(recorded / "spm.model")]
    assert cli.main(["import", "fairseq", str(recorded / f"{name}.pt"), *words]) == 0
    listed = re.findall(r"^(?:taken|renamed|joined|left) +(\S+)", capsys.readouterr().out, re.M)
    assert listed == list(read_checkpoint(recorded / f"{name}.pt")["model"])
    model = load_run(tmp_path / "run", "best", dtype=torch.float64).model
    pairs = json.loads((recorded / "pairs.json").read_text(encoding="utf-8"))
    expected = torch.load(recorded / f"{name}.logits.pt")
    for (text, _), theirs in zip(pairs, expected, strict=True):
        with torch.no_grad():
            ours = model(text_inputs_of(text)).logits
        assert (ours - theirs).abs().max() < 1e-5  # recorded in float32


def test_a_cutoff_at_the_end_of_the_dictionary_begins_no_band(tmp_path: Path) -> None:
    tensors = {name: value for name, value in state().items() if "output_proj" not in name}
    draw = torch.Generator().manual_seed(4)
    softmax = "decoder.adaptive_softmax"
    shapes = {"head": (10, WIDTH), "tail.0.0": (2, WIDTH), "tail.0.2": (ROWS - 9, 2)}
    for place, shape in shapes.items():
        tensors[f"{softmax}.{place}.weight"] = torch.randn(shape, generator=draw)
    bands = {"adaptive_softmax_cutoff": f"9,{ROWS}", "share_decoder_input_output_embed": False}
    assert run_import(write(tmp_path, tensors, arguments(**{**LM, **bands}))) == 0
    section = open_run(tmp_path / "run", "best").model_config.adaptive_bands
    assert section is not None and section.cutoffs == [9] and not section.input


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
        ({"adaptive_input": True}, [], "--adaptive-input: needs --adaptive-softmax-cutoff"),
        ({**BANDS, "adaptive_softmax_factor": 2}, [], "input and softmax have the same bands"),
        ({**BANDS, "adaptive_input_factor": 1.5}, [], "--adaptive-input-factor 1.5: must be a who"),
        ({"adaptive_softmax_cutoff": "x"}, [], "model.adaptive.cutoffs"),
        ({**FCONV, "decoder_attention": "True"}, [], "--decoder-attention True: there"),
        ({**FCONV, "decoder_layers": "3"}, [], "--decoder-layers 3: should be a list"),
        ({"arch": "lstm_lm"}, [], "--decoder-hidden-size None: the checkpoint should"),
        ({**LSTM, "residuals": True}, [], "--residuals: adds the layer's own state"),
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
