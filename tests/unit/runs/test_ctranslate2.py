"""Exported models give the same probabilities in CTranslate2.

Shapes: ``T`` target length.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from torch import nn

from ds_seq.commands.export import main
from ds_seq.config.load import load_experiment
from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.plugins import trusting
from ds_seq.runs.export import export
from ds_seq.runs.formats.ctranslate2 import converter, support, values
from ds_seq.runs.formats.ctranslate2.converter import EXPERIMENT_FILE
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.batches import score
from tests.unit.runs.made import experiment, write_run

T5 = {
    "norm": "rms", "norm_position": "pre", "positions": "buckets", "linear_bias": False,
    "embedding_scale": False,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "post norm": {},
    "pre norm": {"norm_position": "pre"},
    "gelu": {"activation": "gelu", "norm_position": "pre"},
    "swiglu": {"activation": "swiglu", "norm_position": "pre"},
    "learned": {"positions": "learned"},
    "rotary": {"positions": "rotary", "norm_position": "pre"},
    "untied": {"share_embeddings": "none", "encoder_layers": 1},
    "decoder tied": {"share_embeddings": "decoder", "decoder_layers": 3, "num_heads": 4},
    "T5": {**T5, "activation": "geglu_tanh", "head_dim": 6, "share_embeddings": "inputs"},
    "deepnorm": {"norm_position": "deepnorm", "activation": "glu"},
    "no positions": {"positions": "none", "num_heads": 4, "num_kv_heads": 2},
    "stretched": {"positions": {"name": "rotary", "scaling": "linear", "factor": 4.0}},
    "other base": {"positions": {"name": "rotary", "theta": 500.0, "interleaved": True}},
    "embedding norm": {"embedding_norm": True, "embedding_scale": False, "output_bias": True},
    "factorized": {"embedding_dim": 8, "encoder_repeats": 2, "decoder_repeats": 3},
    "factorized, untied": {"embedding_dim": 8, "share_embeddings": "none", "output_bias": True},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "moe": ({"moe": {"num_experts": 2, "every": 2}}, "experts .*--merge-experts"),
    "name": ({"name": "package.module:Model"}, "'package.module:Model'"),
    "encoder_mixer": ({"encoder_mixer": "retention", "positions": "learned"}, "'retention'"),
    "decoder_mixer": ({"decoder_mixer": "dynamic_convolution"}, "'dynamic_convolution'"),
    "positions": ({"positions": "alibi"}, "'alibi'"),
    "positions.scaling": (
        {"positions": {"name": "rotary", "scaling": "ntk", "factor": 2.0}}, "'ntk'",
    ),
    "norm_position": ({"norm_position": "subln"}, "'subln'"),
    "activation": ({"activation": "relu_squared"}, "'relu_squared'"),
    "query_key_norm": ({"query_key_norm": True}, "query_key_norm"),
    "attention_window": ({"attention_window": 4}, "attention_window 4"),
    "linear": ({"linear": "bitnet"}, "'bitnet'"),
    "lora": ({"lora": {"rank": 2}}, "lora; merge it with --merge-lora"),
}  # fmt: skip
SENTENCES = ["the small house", "a dog and a cat", "the"]
EOS = 2
CLOSE = {"atol": 5e-5, "rtol": 1e-5}


def outspoken(config: TransformerConfig, size: int) -> Seq2SeqTransformer:
    """A model whose every parameter matters; a fresh one has biases 0 and says much the same."""
    model = build_seq2seq(config, size, 1, 0, seed=1).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.mul_(1.5).add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def made(
    folder: Path, vocab: SentencePieceTokenizer, section: dict[str, Any]
) -> tuple[nn.Module, Path]:
    """A model and its run folder."""
    config = experiment({"max_positions": 64, **section})
    model = outspoken(config.model, len(vocab))
    return model, write_run(folder / "run", config, vocab, {1: model})


def opened(folder: Path) -> ctranslate2.Translator:
    return ctranslate2.Translator(str(folder), compute_type="float32", intra_threads=1)


def forced(model: nn.Module, source: list[int], target: list[int]) -> list[float]:
    """Our log-probability of every token (T,) of a target."""
    logits = score(
        model, torch.tensor([[*source, EOS]]), torch.tensor([[EOS, *target[:-1]]])
    ).logits
    scores = logits.log_softmax(-1).gather(2, torch.tensor([target])[:, :, None])
    return scores.flatten().tolist()


def scores(found: ctranslate2.Translator, vocab: SentencePieceTokenizer) -> list[list[float]]:
    """CTranslate2's log-probabilities of the sentences, as translations of the reversed list."""
    pieces = [vocab.pieces(ids) for ids in vocab.encode_lines(SENTENCES)]
    return [scored.log_probs for scored in found.score_batch(pieces[::-1], pieces)]


def our_scores(model: nn.Module, vocab: SentencePieceTokenizer) -> list[list[float]]:
    """What `scores` should be."""
    ids = vocab.encode_lines(SENTENCES)
    pairs = zip(ids[::-1], ids, strict=True)
    return [forced(model, source, [*target, EOS]) for source, target in pairs]


@pytest.mark.parametrize("section", VARIANTS.values(), ids=VARIANTS)
def test_scores_are_ours(
    section: dict[str, Any], vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    model, run = made(tmp_path, vocab, section)
    export(run, tmp_path / "out", "best", form="ctranslate2")
    found = scores(opened(tmp_path / "out"), vocab)
    for theirs, ours in zip(found, our_scores(model, vocab), strict=True):
        torch.testing.assert_close(theirs, ours, **CLOSE)


def test_low_rank_changes_can_be_merged(vocab: SentencePieceTokenizer, tmp_path: Path) -> None:
    model, run = made(tmp_path, vocab, {"lora": {"rank": 2}})
    words = [str(run), "--out", str(tmp_path / "out"), "--format", "ctranslate2", "--merge-lora"]
    assert main(words) == 0
    found = scores(opened(tmp_path / "out"), vocab)
    for theirs, ours in zip(found, our_scores(model, vocab), strict=True):
        torch.testing.assert_close(theirs, ours, **CLOSE)


@pytest.mark.parametrize("name", ["post norm", "rotary", "T5"])
def test_what_it_finds_step_by_step_scores_as_much_here(
    name: str, vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    model, run = made(tmp_path, vocab, VARIANTS[name])
    export(run, tmp_path / "out", "best", form="ctranslate2")
    ids_of = {piece: i for i, piece in enumerate(vocab.pieces(range(len(vocab))))}
    sources = vocab.encode_lines(SENTENCES)
    # it rules tokens out before the softmax, we after it: nothing is ruled out here
    found = opened(tmp_path / "out").translate_batch(
        [vocab.pieces(ids) for ids in sources], beam_size=3, length_penalty=0,
        min_decoding_length=0, max_decoding_length=12, return_scores=True, return_end_token=True,
    )  # fmt: skip
    for source, one in zip(sources, found, strict=True):
        target = [ids_of[piece] for piece in one.hypotheses[0]]
        torch.testing.assert_close(one.scores[0], sum(forced(model, source, target)), **CLOSE)


def test_the_command_makes_a_folder_with_vocabulary_and_experiment(
    vocab: SentencePieceTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = made(tmp_path, vocab, {})
    assert main([str(run), "--out", str(tmp_path / "out"), "--format", "ctranslate2"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out' / 'model.bin'}: ")
    assert (
        SentencePieceTokenizer.load(tmp_path / "out" / "vocab.model").fingerprint
        == vocab.fingerprint
    )
    assert load_experiment(tmp_path / "out" / EXPERIMENT_FILE) == load_experiment(
        run / "config.yaml"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_half_the_size(
    dtype: str, vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    model, run = made(tmp_path, vocab, {"d_model": 64, "ffn_dim": 128})
    single = export(run, tmp_path / "single", "best", form="ctranslate2").stat().st_size
    half = export(run, tmp_path / "half", "best", dtype=dtype, form="ctranslate2").stat().st_size
    assert half < 0.55 * single
    for theirs, ours in zip(
        scores(opened(tmp_path / "half"), vocab), our_scores(model, vocab), strict=True
    ):
        torch.testing.assert_close(theirs, ours, atol=0.5, rtol=0.05)


@pytest.mark.parametrize(("key", "case"), REFUSED.items(), ids=REFUSED)
def test_what_it_cannot_be_is_refused_before_loading(
    key: str, case: tuple[dict[str, Any], str], vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    section, what = case
    with trusting(["package.module:Model"]):
        run = write_run(tmp_path / "run", experiment(section), vocab, {1: nn.Linear(1, 1)})
        with pytest.raises(UserError, match=rf"^model\.{key}: CTranslate2 has no {what}") as error:
            export(run, tmp_path / "out", "best", form="ctranslate2")
    assert "--format safetensors" in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_is_no_file(vocab: SentencePieceTokenizer, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", experiment({}), vocab, {1: nn.Linear(1, 1)})
    with pytest.raises(UserError, match="out.safetensors: --format ctranslate2 makes a folder"):
        export(run, tmp_path / "out.safetensors", "best", form="ctranslate2")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


FAULTS: dict[str, Any] = {
    "linear": lambda spec, part, divisor=1.0: values.linear(spec, part, divisor * 1.01),
    "position_rows": lambda *options: values.position_rows(*options).roll(1, 0),
}


@pytest.mark.parametrize("part", FAULTS)
def test_a_folder_that_computes_something_else_is_not_kept(
    part: str, vocab: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps that are one percent smaller, or positions that are one off."""
    _, run = made(tmp_path, vocab, {})
    monkeypatch.setattr(converter, part, FAULTS[part])
    with pytest.raises(UserError, match="computes something else than the run: log-prob") as error:
        export(run, tmp_path / "out", "best", form="ctranslate2")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("axis", ["activation", "positions", "norm", "norm_position"])
def test_what_it_does_not_list_is_refused(
    axis: str, vocab: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a new kind of an axis is never left out of the translation in silence."""
    run = write_run(tmp_path / "run", experiment({}), vocab, {1: nn.Linear(1, 1)})
    tables = {"activation": "ACTIVATIONS", "norm": "NORMS", "norm_position": "NORM_POSITIONS"}
    monkeypatch.setattr(support, tables.get(axis, "POSITIONS"), frozenset())
    with pytest.raises(UserError, match=f"^model.{axis}: CTranslate2 has no '"):
        export(run, tmp_path / "out", "best", form="ctranslate2")


def test_without_the_package_it_says_what_to_install(
    vocab: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = made(tmp_path, vocab, {})
    monkeypatch.setitem(sys.modules, "ctranslate2.specs", None)
    with pytest.raises(UserError, match="pip install ctranslate2"):
        export(run, tmp_path / "out", "best", form="ctranslate2")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_leaves_nothing(
    vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    _, run = made(tmp_path, vocab, {})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        export(run, tmp_path / "file" / "out", "best", form="ctranslate2")
