"""An encoder-decoder starts from an encoder, or from a decoder: what it takes, and what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import read_experiment
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.surgery.upcycle import start_from
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.unit.runs.made import experiment, write_run

SIZES = {"d_model": 16, "num_heads": 2, "ffn_dim": 24, "max_positions": 16}
HEAD = [f"lm_head.{m}.{k}" for m in ("dense", "norm") for k in ("weight", "bias")]
HEAD.append("target_embedding.bias")
TASKS: dict[str, dict[str, Any]] = {
    "encoder": {"name": "masked_language_modeling", "block_tokens": 8},
    "decoder": {"name": "language_modeling", "block_tokens": 8},
}


def _one_stack(stack: str) -> ExperimentConfig:
    return read_experiment(
        {
            "name": "one",
            "data": {"language": "en", "dir": "data", "vocab": {"mask": True}},
            "task": TASKS[stack],
            "model": {"name": f"{stack}_only", f"{stack}_layers": 2, **SIZES},
        }
    )


def _started(run: Path, vocab: SentencePieceTokenizer, **model: Any) -> tuple[Any, list[str]]:
    section = {**SIZES, "encoder_layers": 2, "decoder_layers": 2, **model}
    config = experiment(section)
    train = config.train.model_copy(update={"init_from": str(run)})
    made = build_model(config.model, len(vocab), 1, 0, seed=7)
    lines = start_from(made, config.model_copy(update={"train": train}), vocab.fingerprint)
    return made, lines


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_model_takes_the_stack_that_there_is(
    tmp_path: Path, vocab: SentencePieceTokenizer, stack: str
) -> None:
    config = _one_stack(stack)
    net = build_model(config.model, len(vocab), 1, 0, seed=2)
    run = write_run(tmp_path / "old", config, vocab, {5: net})
    model, lines = _started(run, vocab)
    theirs = dict(net.named_parameters())
    built = build_model(experiment(_full()).model, len(vocab), 1, 0, seed=7)
    fresh = dict(built.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs.get(name, fresh[name])), name
    assert set(theirs) <= set(fresh) and lines[0].endswith(f": {len(theirs)} tensors")
    assert lines[1].startswith("train.init_from: new, not in") and len(lines) == 2
    if stack == "decoder":
        assert "'decoder.layers.*.cross_attention.query.weight' (2)" in lines[1]


def test_a_head_of_an_encoder_is_left_out(tmp_path: Path, vocab: SentencePieceTokenizer) -> None:
    config = _one_stack("encoder")
    section = {**config.model.model_dump(), "lm_head": "dense", "output_bias": True}
    config = config.model_copy(update={"model": type(config.model).model_validate(section)})
    net = build_model(config.model, len(vocab), 1, 0, seed=2)
    run = write_run(tmp_path / "old", config, vocab, {5: net})
    _, lines = _started(run, vocab)
    assert lines[2] == (f"train.init_from: left out of it: {', '.join(map(repr, sorted(HEAD)))}")


def _full() -> dict[str, Any]:
    return {**SIZES, "encoder_layers": 2, "decoder_layers": 2}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"d_model": 32}, r"has shape .*, the model expects .*; the checkpoint belongs to"),
    "depth": ({"encoder_layers": 3}, r"has no tensor 'encoder\.layers\.2\."),
    "meaning": ({"activation": "gelu"}, r"has model\.activation relu, the experiment gelu"),
    "tables": ({"share_embeddings": "none"}, r"set model\.share_embeddings to all or inputs"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, vocab: SentencePieceTokenizer, case: str
) -> None:
    config = _one_stack("encoder")
    net = build_model(config.model, len(vocab), 1, 0, seed=2)
    run = write_run(tmp_path / "old", config, vocab, {5: net})
    model, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        _started(run, vocab, **model)
    assert "\n" not in str(error.value)
