"""Exports for transformers hold the model of the run: read back, they score and read alike.

What transformers itself makes of them is compared by benchmarks/parity/huggingface.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_seq
from ds_seq.commands.export import main
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.models.build import build_seq2seq
from ds_seq.runs.export import export, write_export
from ds_seq.runs.formats.huggingface.exporting import HuggingFaceExporter
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.text.build import train_tokenizers
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.batches import score
from tests.data.fairseq import data_section, write_recorded
from tests.unit.runs.made import experiment, write_run

T5 = {
    "norm": {"name": "rms", "eps": 1e-6},
    "norm_position": "pre",
    "positions": "buckets",
    "linear_bias": False,
    "embedding_scale": False,
}
PRE = {"norm_position": "pre"}
SINES = {"name": "sinusoidal", "offset": 2}
TOP_2 = {"num_experts": 4, "top_k": 2, "every": 1, "eval_capacity_factor": 1.0, "min_capacity": 0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "post-norm": ("marian", {}),
    "post-norm, learned": ("marian", {"positions": "learned", "activation": "gelu"}),
    "post-norm, bias": ("marian", {"output_bias": True, "activation": "silu"}),
    "pre-norm": ("pegasus", PRE),
    "pre-norm, fairseq": ("m2m_100", {**PRE, "positions": SINES, "embedding_scale": False}),
    "bart": ("bart", {"positions": "learned", "embedding_norm": True, "activation": "gelu_tanh"}),
    "mbart": ("mbart", {**PRE, "positions": "learned", "embedding_norm": True}),
    "t5": ("t5", T5),
    "t5 1.1": ("t5", {**T5, "activation": "geglu_tanh", "share_embeddings": "inputs"}),
    "narrow heads": ("t5", {**T5, "head_dim": 6}),
    "top-2 experts": ("nllb-moe", {**PRE, "positions": SINES, "moe": TOP_2}),
    "top-1 experts": ("switch_transformers", {**T5, "moe": {"num_experts": 2}}),
}
LINES = ["the small house", "a dog and  a cat", "the", "houses"]


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path: Path, vocab: SentencePieceTokenizer) -> Any:
    kind, section = KINDS[request.param]
    config = experiment({"max_positions": 32, **section}, vocab={"size": len(vocab)})
    model = build_seq2seq(config.model, len(vocab), 1, 0, seed=1).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return kind, model, write_run(tmp_path / "run", config, vocab, {1: model})


def test_an_export_reads_back_as_the_model(run, tmp_path, vocab):
    kind, model, folder = run
    export(folder, tmp_path / "out", "best", form="hf")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["model_type"] == kind
    read = import_folder(tmp_path / "out", "again", Languages())
    source = read.tokenizers.source
    assert source.encode_lines(LINES) == vocab.encode_lines(LINES)
    for line in LINES:
        ids = torch.tensor([vocab.encode(line)])
        found, expected = (score(each, ids, ids).logits for each in (read.model, model))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    write_export(read.model, read.config, read.tokenizers, tmp_path / "back")
    limits = {"beam": 3, "max_len_a": 0.0, "max_len_b": 12}
    first, second = (ds_seq.load(path) for path in (folder, tmp_path / "back"))
    assert first.translate(LINES, **limits) == second.translate(LINES, **limits)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"positions": "rotary"}, r"model\.positions: marian .* not rotary"),
        ({"positions": "alibi", **PRE}, r"model\.positions: pegasus .* not alibi"),
        ({"attention_window": 4}, r"model\.attention_window: "),
        ({"num_kv_heads": 1}, r"model\.num_kv_heads: "),
        ({"query_key_norm": True}, r"model\.query_key_norm: "),
        ({"activation": "swiglu"}, "activation swiglu has no counterpart"),
        ({"share_embeddings": "none"}, "a table for each side has no counterpart"),
        ({**T5, "positions": "learned"}, r"model\.positions: t5 .* not learned"),
        ({**T5, "linear_bias": True}, r"model\.linear_bias: "),
    ],
)
def test_a_model_that_transformers_lacks_is_refused(tmp_path, vocab, section, message, capsys):
    config = experiment({"max_positions": 32, **section}, vocab={"size": len(vocab)})
    model = build_seq2seq(config.model, len(vocab), 1, 0, seed=1)
    folder = write_run(tmp_path / "run", config, vocab, {1: model})
    with pytest.raises(UserError, match=message):
        main([str(folder), "--out", str(tmp_path / "out"), "--format", "hf"])
    assert not (tmp_path / "out").exists()


NLLB = {**PRE, "positions": SINES}


@pytest.mark.parametrize(
    ("section", "moe", "message"),
    [
        (PRE, TOP_2, r"model\.positions: nllb-moe .* offset 2"),
        ({"positions": SINES}, TOP_2, r"model\.norm_position: .* \(nllb-moe has pre\)"),
        (NLLB, {**TOP_2, "top_k": 1}, r"model\.moe\.top_k: .* 1 \(nllb-moe has 2\)"),
        (NLLB, {**TOP_2, "normalize_weights": "none"}, r"model\.moe\.normalize_weights: "),
        (NLLB, {**TOP_2, "router": "cosine"}, r"model\.moe\.router: .* cosine "),
        (NLLB, {**TOP_2, "shared_experts": 1}, r"model\.moe\.shared_experts: "),
        (NLLB, {**TOP_2, "residual": True}, r"model\.moe\.residual: "),
        (NLLB, {**TOP_2, "conditional_budget": 0.5}, r"model\.moe\.conditional_budget: "),
        (NLLB, {**TOP_2, "ffn_dim": 8}, r"model\.moe\.ffn_dim: .* 8 "),
        (NLLB, {**TOP_2, "num_experts": [2, 4, 4, 4]}, r"model\.moe\.num_experts: "),
        (NLLB, {**TOP_2, "min_capacity": 4}, r"model\.moe\.min_capacity: .* 4 "),
        (
            NLLB,
            {**TOP_2, "layers": {"encoder": [0]}},
            r"model\.moe: the encoder has experts in .*0",
        ),
        (T5, {**TOP_2, "eval_capacity_factor": None}, r"model\.moe\.top_k: .* \(switch_trans"),
        (T5, {"eval_capacity_factor": 2.0}, r"model\.moe\.eval_capacity_factor: .* 2\.0 "),
        (T5, {"router": "sigmoid"}, r"model\.moe\.router: .* sigmoid "),
        ({**T5, "activation": "geglu_tanh"}, {}, "dense_act_fn gated-gelu has no counterpart"),
    ],
)
def test_experts_that_transformers_lacks_are_refused(vocab, section, moe, message):
    config = experiment({"max_positions": 32, **section, "moe": moe}, vocab={"size": len(vocab)})
    with pytest.raises(UserError, match=message):
        HuggingFaceExporter(config, Tokenizers.shared(vocab))


def test_how_experts_are_trained_does_not_matter(vocab):
    """Nothing is dropped or drawn in evaluation, so capacities and noise of training are free."""
    moe = {"num_experts": 4, "top_k": 2, "drop": "random", "noise": "gumbel", "output_masking": 0.2}
    config = experiment({"max_positions": 32, **NLLB, "moe": moe}, vocab={"size": len(vocab)})
    HuggingFaceExporter(config, Tokenizers.shared(vocab))


OFFSET = {"positions": SINES, "share_embeddings": "decoder"}


def _of_fairseq(folder: Path, section: dict[str, Any], **options: Any) -> tuple[Any, Tokenizers]:
    """An experiment with the dictionaries of two languages, and their merges."""
    write_recorded(folder)
    data = data_section(folder, "bpe", folder / "data")
    for side in ("source", "target"):
        data["vocab"][side]["fairseq"] |= {"moses": True, **options}
    vocab = {"name": "fairseq_dict", **data["vocab"]}
    config = experiment({"max_positions": 64, **section}, vocab=vocab)
    return config, train_tokenizers(config.data, [])


@pytest.mark.parametrize(
    "section",
    [OFFSET, {"positions": "learned", "share_embeddings": "none"}, {"share_embeddings": "decoder"}],
    ids=["decoder", "none, learned", "other sinusoids"],
)
def test_two_dictionaries_become_those_of_fsmt(section: dict[str, Any], tmp_path: Path) -> None:
    config, tokenizers = _of_fairseq(tmp_path / "text", section)
    model = build_model(config.model, tokenizers.sizes, 1, 0, seed=1)
    model.requires_grad_(False).eval()
    write_export(model, config, tokenizers, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "best", form="hf")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["model_type"], settings["langs"]) == ("fsmt", ["en", "de"])
    read = import_folder(tmp_path / "out", "again", Languages())
    text = (tmp_path / "text" / "text.en").read_text(encoding="utf-8").splitlines()[:20]
    for own, written in zip(tokenizers, read.tokenizers, strict=True):
        assert own.encode_lines(text) == written.encode_lines(text)
        decoded = [[side.decode(side.encode(line)) for line in text] for side in (own, written)]
        assert _joined(decoded[0]) == _joined(decoded[1])
    write_export(read.model, read.config, read.tokenizers, tmp_path / "back")
    limits = {"beam": 3, "max_len_a": 0.0, "max_len_b": 12}
    first, second = (ds_seq.load(tmp_path / name) for name in ("run", "back"))
    found = [_joined(model.translate(text, **limits)) for model in (first, second)]
    assert found[0] == found[1]


def _joined(lines: list[str]) -> list[str]:
    """Lines without spaces: FSMT has none after `<unk>`."""
    return [line.replace(" ", "") for line in lines]


def test_two_vocabularies_that_fsmt_lacks_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"moses": False}, r"data\.vocab\.fairseq\.moses: false, but FSMT always tokenizes"),
        ({"codes": None}, r"data\.vocab\.fairseq\.codes: is missing, but FSMT splits"),
    ):
        with pytest.raises(UserError, match=message):
            HuggingFaceExporter(*_of_fairseq(tmp_path / "text", OFFSET, **options))
    codes = tmp_path / "text" / "codes"
    old = tmp_path / "old"
    old.write_text(codes.read_text(encoding="utf-8").replace("0.2", "0.1", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"codes: are of version 0\.1 of subword-nmt"):
        HuggingFaceExporter(*_of_fairseq(tmp_path / "text", OFFSET, codes=str(old)))
    with pytest.raises(UserError, match="pre"):
        HuggingFaceExporter(*_of_fairseq(tmp_path / "text", {**OFFSET, **PRE}))
