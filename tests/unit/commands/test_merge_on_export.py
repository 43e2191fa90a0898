"""`ds-seq export --merge-experts`: dense models for programs that have no experts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch

from ds_seq import cli
from ds_seq.data.binarize import binarize
from ds_seq.errors import EXIT_USER_ERROR
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.runs.open import load_run
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.batches import score
from tests.unit.runs.made import experiment, write_run
from tests.values import SHARD_SIZE

EOS = 2
LENGTHS = {"max_source_length": 60, "max_target_length": 60}
MOE = {"num_experts": 3, "top_k": 2, "capacity_factor": None}


def made(folder: Path, vocab: SentencePieceTokenizer, name: str, equal: bool, **moe: Any) -> Path:
    """A run with experts whose parameters matter; the experts of a layer may be equal."""
    config = experiment({"max_positions": 64, "moe": {**MOE, **moe}}, **LENGTHS)
    model = build_seq2seq(config.model, len(vocab), 1, 0, seed=1).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.mul_(1.5).add_(0.2 * torch.randn(parameter.shape))
    for layer in model.modules():
        if equal and isinstance(layer, MoeFeedForward):
            for stacked in layer.experts.parameters():
                stacked.copy_(stacked[:1].expand_as(stacked))
    return write_run(folder / name, config, vocab, {1: model})


@pytest.fixture
def shards(text: Path, vocab: SentencePieceTokenizer, tmp_path: Path) -> Path:
    """The training text in shards."""
    folder = tmp_path / "data"
    folder.mkdir()
    sides = text / "train.en", text / "train.de"
    languages = ("en", "de")
    binarize(
        Tokenizers.shared(vocab), *sides, folder, "train", languages=languages,
        shard_size=SHARD_SIZE,
    )  # fmt: skip
    return folder


def export(run: Path, out: Path, *options: object) -> int:
    arguments = (run, "--out", out, "--merge-experts", *options)
    return cli.main(["export", *map(str, arguments)])


def test_equal_experts_lose_nothing(
    text: Path,
    vocab: SentencePieceTokenizer,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CTranslate2 scores sentences as the model with experts does, measured or not."""
    run = made(tmp_path, vocab, "run", equal=True)
    test = ("--input", text / "test.en", "--reference", text / "test.de")
    measured = ("--data", shards, "--max-tokens-measured", 300, *test)
    assert export(run, tmp_path / "plain", "--format", "ctranslate2") == 0
    assert re.search(r"feed_forward  33.3% 33.3% 33.3%\n", capsys.readouterr().out)
    assert export(run, tmp_path / "measured", "--format", "ctranslate2", *measured) == 0
    printed = capsys.readouterr().out
    assert "33.3% 33.3%" not in printed
    before, after = re.findall(r"^(?:before|after) +(BLEU\S* = .*)", printed, re.MULTILINE)
    assert before == after
    card = (tmp_path / "measured" / "README.md").read_text()
    assert "weighted by use on `data` (train)" in card and "BLEU on `test.en`" in card
    source, target = vocab.encode_lines(["the small house", "a dog"])
    inputs = torch.tensor([[*source, EOS]]), torch.tensor([[EOS, *target]])
    logits = score(load_run(run, "best").model, *inputs).logits
    ours = logits.log_softmax(-1).gather(2, torch.tensor([[*target, EOS]])[:, :, None]).flatten()
    for name in ("plain", "measured"):
        found = ctranslate2.Translator(str(tmp_path / name), compute_type="float32")
        (scored,) = found.score_batch([vocab.pieces(source)], [vocab.pieces(target)])
        torch.testing.assert_close(scored.log_probs, ours.tolist(), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("moe", "options", "message"),
    [
        ({}, (), "--merge-experts: goes with --format ctranslate2 or hf"),
        ({}, ("--format", "hf", "--input", "nowhere"), "belong together"),
        ({}, ("--format", "hf", "--only", "lora"), "writes the whole model"),
        ({"ffn_dim": 7, "every": 2}, ("--format", "hf"), "becomes 7 wide, the others are 24"),
        ({"normalize_weights": "none"}, ("--format", "hf"), "normalize_weights is none"),
        ({"residual": True}, ("--format", "ctranslate2"), "has a learned share of the output"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(
    moe: dict[str, Any],
    options: tuple[str, ...],
    message: str,
    vocab: SentencePieceTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = made(tmp_path, vocab, "run", equal=False, **moe)
    assert export(run, tmp_path / "out", *options) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()
