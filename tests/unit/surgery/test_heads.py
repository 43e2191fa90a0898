"""Cutting out attention heads: what they are worth, and a model without them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ds_seq import cli
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.fewer_layers import CopiedLayers
from ds_seq.config.load import load_experiment
from ds_seq.config.model import TransformerConfig
from ds_seq.models import build_model
from ds_seq.runs.open import load_run
from ds_seq.surgery.heads import (
    AttentionOfLayer,
    Groups,
    attentions,
    drop_fraction,
    head_factors,
    head_importance,
    keep_number,
    prune_heads,
)
from ds_seq.surgery.shrink import student_config
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.batches import mark_every_third, score
from tests.unit.models.test_sublayers import walk
from tests.unit.runs.made import experiment, write_run, write_run_of_text
from tests.values import batch_limits

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"positions": "rotary", "query_key_norm": True},
    "alibi": {"positions": "alibi", "norm_position": "pre"},
    "buckets and window": {"positions": "buckets", "attention_window": 4, "num_kv_heads": 2},
    "wide heads": {"head_dim": 6, "num_kv_heads": 2},
    "shared keys": {"num_kv_heads": 2, "moe": {"num_experts": 2}},
    "multiway": {"multiway": {"markers": {"a": 0, "b": 1}}, "moe": {"num_experts": 2}},
}
Made = tuple[nn.Module, ExperimentConfig, TransformerConfig]


def _made(vocab: SentencePieceTokenizer, **model: Any) -> Made:
    config = experiment({"num_heads": 4, "dropout": 0.0, "max_positions": 40, **model})
    made = build_model(config.model, len(vocab), 1, 0, seed=4).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    mark_every_third(made)
    assert isinstance(config.model, TransformerConfig)
    return made, config, config.model


def _kept(cfg: TransformerConfig) -> Groups:
    """Something else in each attention."""
    groups = cfg.num_kv_heads or cfg.num_heads
    places = [(kind, layer) for kind in ("encoder", "decoder", "cross") for layer in (0, 1)]
    return {
        AttentionOfLayer(kind, layer): [  # type: ignore[arg-type]
            group for group in range(groups) if (group + index) % 2 == 0 or group == index
        ]
        for index, (kind, layer) in enumerate(places)
    }


def _factors(cfg: TransformerConfig, kept: Groups) -> dict[AttentionOfLayer, Tensor]:
    sharing = cfg.head_counts(cfg.d_model).sharing
    factors = {}
    for where, groups in kept.items():
        factor = torch.zeros(cfg.num_heads // sharing)
        factor[groups] = 1.0
        factors[where] = factor.repeat_interleave(sharing)
    return factors


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_is_the_model_with_those_heads_masked(
    vocab: SentencePieceTokenizer, name: str
) -> None:
    model, config, cfg = _made(vocab, **MODELS[name])
    kept = _kept(cfg)
    smaller, new = prune_heads(model, config, len(vocab), kept)
    sources, targets = torch.randint(4, len(vocab), (2, 4, 7))
    sources[1, 4:] = 1
    with torch.no_grad(), head_factors(_factors(cfg, kept), model, cfg):
        masked = score(model, sources, targets).logits
    with torch.no_grad():
        found = score(smaller, sources, targets).logits
        whole = score(model, sources, targets).logits
    torch.testing.assert_close(found, masked, atol=1e-6, rtol=1e-6)
    assert (found - whole).abs().max() > 1e-3
    counted = sum(parameter.numel() for parameter in smaller.parameters())
    size = new.model.num_params(len(vocab))
    assert size is not None and size.total == counted
    walk(smaller, sources, 3, 40)  # cached decoding


def test_a_long_text_in_blocks_has_the_bias_of_the_heads_that_are_left(
    vocab: SentencePieceTokenizer,
) -> None:
    model, config, cfg = _made(vocab, positions="alibi", attention_window=4, max_positions=260)
    kept = _kept(cfg)
    smaller, _ = prune_heads(model, config, len(vocab), kept)
    tokens = torch.randint(4, len(vocab), (1, 256))
    with torch.no_grad(), head_factors(_factors(cfg, kept), model, cfg):
        masked = score(model, tokens, tokens).logits
    with torch.no_grad():
        found = score(smaller, tokens, tokens).logits
    torch.testing.assert_close(found, masked, atol=1e-6, rtol=1e-6)


def test_what_is_pruned_twice_is_counted_as_in_the_first_model(
    vocab: SentencePieceTokenizer,
) -> None:
    model, config, cfg = _made(vocab, positions="alibi")
    first = keep_number(dict.fromkeys(_kept(cfg), torch.tensor([3.0, 1.0, 2.0, 4.0])), 3)
    once, config = prune_heads(model, config, len(vocab), first)  # 0, 2 and 3 are left
    second = {where: [1, 2] for where in first}
    twice, config = prune_heads(once, config, len(vocab), second)
    assert isinstance(config.model, TransformerConfig) and config.model.pruned_heads is not None
    assert config.model.pruned_heads.cross == [[0, 1], [0, 1]]
    direct, _ = prune_heads(model, experiment({**cfg.model_dump()}), len(vocab), {
        where: [2, 3] for where in first
    })  # fmt: skip
    sources, targets = torch.randint(4, len(vocab), (2, 4, 7))
    with torch.no_grad():
        ours, theirs = (score(each, sources, targets).logits for each in (twice, direct))
    assert torch.equal(ours, theirs)


def _pairs(vocab: SentencePieceTokenizer, count: int) -> list[tuple[list[int], list[int]]]:
    lengths = torch.randint(1, 8, (count, 2)).tolist()
    return [
        tuple(torch.randint(4, len(vocab), (n,)).tolist() for n in pair)  # type: ignore[misc]
        for pair in lengths
    ]


def test_importance_is_the_derivative_by_a_factor(vocab: SentencePieceTokenizer) -> None:
    """Compared with differences of losses, sentence by sentence, in float64."""
    model, _, cfg = _made(vocab, num_kv_heads=2)
    model.double()
    pairs = _pairs(vocab, 3)
    found = head_importance(model, cfg, pairs, vocab.symbols, batch_limits(), CPU)

    def loss(pair: tuple[list[int], list[int]], factors: Any) -> float:
        source, target = torch.tensor([[*pair[0], 2]]), torch.tensor([[*pair[1], 2]])
        inputs = torch.cat([torch.tensor([[vocab.symbols.start]]), target[:, :-1]], 1)
        with torch.no_grad(), head_factors(factors, model, cfg):
            logits = score(model, source, inputs).logits
        return float(nn.functional.cross_entropy(logits[0], target[0], reduction="sum"))

    for where in attentions(model, cfg):
        values = []
        for head in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[head] = 1e-5
            one = torch.ones(4, dtype=torch.float64)
            values.append(
                sum(
                    abs(loss(pair, {where: one + step}) - loss(pair, {where: one - step})) / 2e-5
                    for pair in pairs
                )
            )
        heads = torch.tensor(values, dtype=torch.float64)
        expected = (heads / heads.norm()).view(2, 2).sum(1)
        torch.testing.assert_close(found[where], expected, rtol=1e-4, atol=1e-6)


def test_importance_does_not_depend_on_the_batches(vocab: SentencePieceTokenizer) -> None:
    model, _, cfg = _made(vocab)
    pairs = _pairs(vocab, 9)
    together = head_importance(model, cfg, pairs, vocab.symbols, batch_limits(), CPU)
    alone = head_importance(model, cfg, pairs, vocab.symbols, batch_limits(max_sentences=1), CPU)
    for where, values in together.items():
        torch.testing.assert_close(alone[where], values, rtol=1e-4, atol=1e-6)
    assert not any(each.output._forward_pre_hooks for each in attentions(model, cfg).values())


def test_a_fraction_is_of_all_heads_and_leaves_one_in_each_attention() -> None:
    weak, strong = AttentionOfLayer("encoder", 0), AttentionOfLayer("cross", 0)
    importance = {weak: torch.tensor([0.1, 0.3, 0.2]), strong: torch.tensor([0.5, 0.9, 0.7])}
    assert drop_fraction(importance, 0.34) == {weak: [1], strong: [0, 1, 2]}
    assert drop_fraction(importance, 0.5) == {weak: [1], strong: [1, 2]}
    assert drop_fraction(importance, 0.99) == {weak: [1], strong: [1]}


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"encoder": [[0]]}, "has 1 lists for 2 layers"),
        ({"cross": [[4], []]}, "there is no head 4"),
        ({"cross": [[1, 0], []]}, "in ascending order"),
        ({"decoder": [[], [0, 1, 2, 3]]}, "no head is left"),
        ({"decoder": [[], [1]], "kv": 2}, "share keys and values"),
        ({"decoder": [[], [1]], "norm_position": "subln"}, "norm covers all heads"),
    ],
)
def test_heads_that_cannot_be_missing(pruned: dict[str, Any], message: str) -> None:
    settings = {"norm_position": pruned.pop("norm_position", "pre")}
    settings["num_kv_heads"] = pruned.pop("kv", 4)
    with pytest.raises(ValidationError, match=message):
        experiment({"num_heads": 4, "pruned_heads": pruned, **settings})


def test_a_student_lacks_the_heads_of_the_layers_it_copies() -> None:
    config = experiment({"num_heads": 4, "pruned_heads": {"cross": [[0], [1, 2]]}})
    model = student_config(config, CopiedLayers([0], [1])).model
    assert isinstance(model, TransformerConfig) and model.pruned_heads is not None
    assert model.pruned_heads.cross == [[1, 2]] and model.pruned_heads.encoder == []


@pytest.fixture
def run(tmp_path: Path, text: Path, vocab: SentencePieceTokenizer) -> Path:
    """A run folder that knows its test text."""
    return write_run_of_text(tmp_path / "run", text, vocab, {"num_heads": 4, "max_positions": 40})


def test_the_command_writes_a_model_that_trains_on(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    texts = [
        "--calibration",
        str(text / "valid.en"),
        "--calibration-target",
        str(text / "valid.de"),
    ]
    assert cli.main(["prune-heads", str(run), "--fraction", "0.5", *texts, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    small = load_run(out, "best")
    cfg = small.model_config
    assert isinstance(cfg, TransformerConfig) and cfg.pruned_heads is not None
    assert cfg.pruned_heads.count("encoder") + cfg.pruned_heads.count("decoder") == 12
    lines = [line for line in printed.splitlines() if "keeps" in line]
    assert len(lines) == 6 and sum(len(re.findall(r"\(", line)) for line in lines) == 24
    assert re.search(r"^after +BLEU\|nrefs:1\|\S+ = \d", printed, re.MULTILINE)
    assert f"fine-tune:  ds-seq train {out}/config.yaml" in printed
    assert load_experiment(out / "config.yaml").train.init_from == str(out)


def test_bad_input_is_one_line_and_writes_nothing(
    run: Path,
    text: Path,
    tmp_path: Path,
    vocab: SentencePieceTokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def other(name: str, **model: Any) -> Path:
        config = experiment({"num_heads": 4, **model})
        made = build_model(config.model, len(vocab), 1, 0, seed=1)
        return write_run(tmp_path / name, config, vocab, {1: made})

    cases = [
        (run, ["--keep", "5"], "has 4 heads"),
        (run, ["--keep", "0"], "at least 1"),
        (run, ["--fraction", "1"], "must be above 0 and below 1"),
        (run, [], "one of the arguments"),
        (other("subln", norm_position="subln"), ["--keep", "1"], "norm over all heads"),
        (other("bits", linear="bitnet"), ["--keep", "1"], "with one scale"),
        (other("shared", num_kv_heads=2), ["--keep", "3"], "keep a multiple of 2"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for folder, options, message in cases:
        words = ["--calibration", str(text / "valid.en"), "--out", str(tmp_path / "out")]
        assert cli.main(["prune-heads", str(folder), *options, *words]) == 2, message
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and message in errors[0], errors
    assert sorted(tmp_path.rglob("*")) == before
