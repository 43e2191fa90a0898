"""Dropping experts that a text does not need."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq import cli
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.open import load_run
from ds_seq.surgery.prune import best_experts, importance, moe_layers, parse_keep, prune
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import model_tensors
from tests.batches import score
from tests.unit.runs.made import experiment, write_run, write_run_of_text
from tests.values import batch_limits

CPU = torch.device("cpu")
MOE = {"num_experts": 6, "top_k": 1, "normalize_weights": "after_dropping"}
ENCODER, DECODER = "encoder.layers.1.feed_forward", "decoder.layers.1.feed_forward"


def _model(
    vocab: SentencePieceTokenizer, moe: dict[str, Any] | None = None, **model: Any
) -> tuple[nn.Module, ExperimentConfig]:
    config = experiment({"moe": {**MOE, **(moe or {})}, "dropout": 0.0, **model})
    return build_model(config.model, len(vocab), 1, 0, seed=4).eval(), config


def _pairs(vocab: SentencePieceTokenizer, count: int) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 9, (count, 2), generator=generator).tolist()
    return [
        tuple(torch.randint(4, len(vocab), (n,), generator=generator).tolist() for n in pair)  # type: ignore[misc]
        for pair in lengths
    ]


def _logits(model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
    with torch.no_grad():
        sides = [(torch.tensor([[*s, 2]]), torch.tensor([[2, *t]])) for s, t in pairs]
        return [score(model, *pair).logits for pair in sides]


def _important(
    model: nn.Module, vocab: SentencePieceTokenizer, pairs: Any, **limits: int
) -> dict[str, Tensor]:
    return importance(model, pairs, vocab.symbols, batch_limits(**limits), CPU)


def test_importance_is_mean_probability_times_share_of_tokens(
    vocab: SentencePieceTokenizer,
) -> None:
    model, _ = _model(vocab, {"num_experts": 4, "top_k": 2})
    pair = _pairs(vocab, 1)[0]
    routings = []
    for layer in moe_layers(model).values():
        layer.gate.register_forward_hook(lambda module, inputs, routing: routings.append(routing))
    found = _important(model, vocab, [pair])
    assert list(found) == [ENCODER, DECODER]
    for (name, values), routing in zip(found.items(), routings, strict=True):
        length = len(pair[0 if name == ENCODER else 1]) + 1
        assert routing.probabilities.shape == (length, 4)
        for expert in range(4):
            share = sum(expert in chosen for chosen in routing.experts.tolist()) / length
            mean = float(routing.probabilities[:, expert].mean())
            assert float(values[expert]) == pytest.approx(mean * share)


def test_importance_does_not_depend_on_the_batches(vocab: SentencePieceTokenizer) -> None:
    model, _ = _model(vocab)
    pairs = _pairs(vocab, 12)
    together = _important(model, vocab, pairs)
    for limits in ({"max_sentences": 1}, {"max_tokens": 20}):
        for name, values in _important(model, vocab, pairs, **limits).items():
            torch.testing.assert_close(values, together[name], rtol=1e-5, atol=1e-7)
    assert not any(layer.gate._forward_hooks for layer in moe_layers(model).values())


def test_sentences_are_cut_to_what_the_model_can_take(vocab: SentencePieceTokenizer) -> None:
    model, _ = _model(vocab, positions="learned", max_positions=8)
    long = [([5] * 30, [6] * 30)]
    found = _important(model, vocab, long, max_source_length=8)
    expected = _important(model, vocab, [([5] * 7, [6] * 7)])
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_best_experts_are_the_most_important_in_their_old_order() -> None:
    values = torch.tensor([0.1, 0.5, 0.0, 0.4])
    kept = best_experts({"a": values, "b": values}, [2, 3])
    assert kept == {"a": [1, 3], "b": [0, 1, 3]}


def test_dropping_experts_that_no_token_chooses_changes_nothing(
    vocab: SentencePieceTokenizer,
) -> None:
    model, config = _model(vocab, {"num_experts": 12})
    pairs = _pairs(vocab, 3)
    found = _important(model, vocab, pairs)
    used = [int((values > 0).sum()) for values in found.values()]
    assert all(count < 12 for count in used), "the test means to drop some"
    kept = best_experts(found, used)
    smaller, new = prune(model, config, len(vocab), kept)
    assert new.model.experts_per_layer == used
    for ours, theirs in zip(_logits(smaller, pairs), _logits(model, pairs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    first = found[DECODER].argmax()  # and a needed one is missed
    kept[DECODER] = [expert for expert in range(12) if expert != first]
    damaged, _ = prune(model, config, len(vocab), kept)
    pair = zip(_logits(damaged, pairs), _logits(model, pairs), strict=True)
    assert max(float((ours - theirs).abs().max()) for ours, theirs in pair) > 1e-3


def test_experts_of_a_fixed_hash_cannot_be_taken_out(vocab: SentencePieceTokenizer) -> None:
    config = experiment({"moe": {**MOE, "router": "hash"}})
    model = build_model(config.model, len(vocab), 1, 0, seed=4).eval()
    with pytest.raises(UserError, match="hash deals tokens out to all experts"):
        prune(model, config, len(vocab), dict.fromkeys(moe_layers(model), [0, 1]))


ROUTERS: dict[str, dict[str, Any]] = {
    "cosine": {"router": "cosine", "num_experts": 40, "top_k": 2},  # 20 wide, after pruning 16
    "sigmoid": {"router": "sigmoid", "top_k": 2},
    "expert_choice": {"router": "expert_choice", "placement": "encoder", "top_k": 2},
    "language": {"router": "language", "top_k": 2},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_scores_the_experts_that_stay_as_before(
    vocab: SentencePieceTokenizer, name: str
) -> None:
    moe = {"normalize_weights": None, **ROUTERS[name]}
    symbols = {"vocab": {"user_symbols": ["<2de>"]}} if name == "language" else {}
    config = experiment({"moe": {**MOE, **moe}, "dropout": 0.0}, **symbols)
    model = build_model(config.model, len(vocab), 1, 0, seed=4).eval()
    for layer in moe_layers(model).values():
        for buffer in layer.gate.buffers():
            buffer.copy_(torch.arange(len(buffer)) * 300)  # a bias that decides much
    pairs = _pairs(vocab, 5)
    found = _important(model, vocab, pairs)
    kept = best_experts(found, [4] * len(found))
    smaller, new = prune(model, config, len(vocab), kept)
    assert new.model.experts_per_layer == [4] * len(kept)
    assert (
        build_model(new.model, len(vocab), 1, 0, seed=1).state_dict().keys()
        == model.state_dict().keys()
    )

    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    for layer_name, layer in moe_layers(model).items():
        gate, pruned = layer.gate, moe_layers(smaller)[layer_name].gate
        for part in gate.expert_tensors:
            rows = dict(gate.state_dict())[part][kept[layer_name]]
            assert torch.equal(pruned.state_dict()[part], rows)
        with torch.no_grad():
            old, ours = (g(x, None, (1, 5), x[:1]).probabilities for g in (gate, pruned))
        rescaled = old[:, kept[layer_name]] / old[:, kept[layer_name]].sum(-1, keepdim=True)
        torch.testing.assert_close(ours, rescaled, rtol=1e-4, atol=1e-6)


def test_cosine_routers_of_unlike_width_cannot_be_pruned(vocab: SentencePieceTokenizer) -> None:
    model, config = _model(vocab, {"router": "cosine", "num_experts": [8, 40]})
    with pytest.raises(UserError, match=r"router_dim: is null, so the routers are \[16, 20\] wide"):
        prune(model, config, len(vocab), {ENCODER: [0], DECODER: [1]})


@pytest.mark.parametrize("more", [{}, {"multiway": {"markers": {"a": 0, "b": 1}}}])
def test_keeping_all_is_the_same_model_and_leaves_the_old_one_alone(
    vocab: SentencePieceTokenizer, more: dict[str, Any]
) -> None:
    model, config = _model(vocab, **more)
    before = {name: value.clone() for name, value in model_tensors(model)}
    everything = {name: list(range(6)) for name in (ENCODER, DECODER)}
    same, new = prune(model, config, len(vocab), everything)
    assert new.model == config.model
    assert all(torch.equal(value, before[name]) for name, value in model_tensors(same))
    prune(model, config, len(vocab), {ENCODER: [0], DECODER: [5]})
    assert all(torch.equal(value, before[name]) for name, value in model_tensors(model))


def test_a_pruned_model_forgets_an_expert_parallelism_that_its_counts_do_not_allow(
    vocab: SentencePieceTokenizer,
) -> None:
    model, config = _model(vocab)
    train = config.train.model_copy(update={"expert_parallel": 2})
    spread = config.model_copy(update={"train": train})
    _, new = prune(model, spread, len(vocab), {ENCODER: [0, 1, 2], DECODER: [3, 4, 5]})
    assert new.model.moe is not None and new.model.moe.num_experts == 3
    assert new.train.expert_parallel == 1


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("7", "encoder.layers.1.feed_forward has only 6 experts"),
        ("1", "a token visits model.moe.top_k=2 experts; keep at least 2"),
        ("2,1", "keep at least 2"),
        ("0", "keep at least 2"),
        ("2,2,2", r"3 counts for 2 layers with experts \(encoder.layers.1.feed_forward, decoder"),
        ("many", "--keep many: give a number, or one for each layer"),
        ("-2", "give a number"),
        ("", "give a number"),
    ],
)
def test_counts_that_cannot_be_kept(vocab: SentencePieceTokenizer, keep: str, message: str) -> None:
    model, config = _model(vocab, {"top_k": 2})
    assert parse_keep("2, 6", model, config) == [2, 6]
    assert parse_keep("3", model, config) == [3, 3]
    with pytest.raises(UserError, match=message):
        parse_keep(keep, model, config)


@pytest.fixture
def run(tmp_path: Path, text: Path, vocab: SentencePieceTokenizer) -> Path:
    """A run folder that knows its test text."""
    return write_run_of_text(tmp_path / "run", text, vocab, {"moe": MOE, "max_positions": 40})


def test_the_command_writes_a_smaller_model_and_says_what_it_kept(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.safetensors"
    arguments = ["--keep", "2,4", "--calibration", str(text / "valid.en"), "--out", str(out)]
    assert cli.main(["prune-experts", str(run), *arguments]) == 0
    printed = capsys.readouterr().out
    small, large = load_run(out, "best"), load_run(run, "best")
    assert small.model_config.experts_per_layer == [2, 4]
    assert [layer.num_experts for layer in moe_layers(small.model).values()] == [2, 4]
    counts = [sum(p.numel() for p in m.parameters()) for m in (large.model, small.model)]
    assert f"parameters  {counts[0]:,} -> {counts[1]:,} (-" in printed
    assert re.search(r"^before +BLEU\|nrefs:1\|\S+ = \d", printed, re.MULTILINE)
    assert re.search(r"^after +BLEU\|nrefs:1\|\S+ = \d", printed, re.MULTILINE)
    for name, layer in moe_layers(small.model).items():
        line = next(line for line in printed.splitlines() if line.startswith(name))
        keeps, drops = line.split("keeps ")[1].split("drops ")
        kept = sorted(int(expert) for expert in re.findall(r"(\d+) \(", keeps))
        dropped = re.findall(r"(\d+) \(", drops)
        assert len(kept) == layer.num_experts and len(kept) + len(dropped) == 6
        importances = [float(x) for x in re.findall(r"\(([\d.e-]+)\)", keeps + drops)]
        assert importances == sorted(importances, reverse=True)
        old = moe_layers(large.model)[name]
        assert torch.equal(layer.experts.w1, old.experts.w1[kept])
        assert torch.equal(layer.gate.get_parameter("weight"), old.gate.weight[kept])


def test_targets_and_test_text_of_ones_own_and_a_folder(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def texts(split: str, *options: str) -> list[str]:
        sides = zip(options, ("en", "de"), strict=True)
        return [word for option, side in sides for word in (option, str(text / f"{split}.{side}"))]

    arguments = [
        *texts("valid", "--calibration", "--calibration-target"),
        *texts("test", "--input", "--reference"),
    ]
    out = tmp_path / "folder"
    command = ["prune-experts", str(run), "--keep", "3", "--out", str(out), "--dtype", "bf16"]
    assert cli.main([*command, *arguments]) == 0
    assert "drops" in capsys.readouterr().out
    assert load_run(out, "best").model_config.experts_per_layer == [3, 3]


def test_bad_input_is_one_line_and_writes_nothing(
    run: Path,
    text: Path,
    tmp_path: Path,
    vocab: SentencePieceTokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blank, taken = tmp_path / "blank.en", tmp_path / "taken"
    blank.write_text("\n  \n\u200b\n")
    taken.write_text("what was there")
    valid, test = str(text / "valid.en"), str(text / "test.en")
    dense = experiment({})
    dense_run = write_run(
        tmp_path / "dense", dense, vocab, {1: build_model(dense.model, len(vocab), 1, 0, seed=1)}
    )
    moe = experiment({"moe": MOE})
    no_test = write_run(
        tmp_path / "no", moe, vocab, {1: build_model(moe.model, len(vocab), 1, 0, seed=1)}
    )
    cases = [
        (run, {"--keep": "9"}, "has only 6 experts"),
        (run, {"--calibration": str(blank)}, "blank.en: has no text to calibrate on"),
        (run, {"--calibration": "nowhere.en"}, "nowhere.en: no such file"),
        (run, {"--calibration-target": str(blank)}, "blank.en has 3"),
        (run, {"--input": test}, "--input, --reference: belong together"),
        (run, {"--input": str(blank), "--reference": valid}, "must be the translation"),
        (run, {"--out": str(taken)}, "taken: exists already"),
        (dense_run, {}, "dense model"),
        (no_test, {}, "data.raw.test: is empty"),
        (tmp_path / "nowhere", {}, "no such run folder"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for folder, changes, message in cases:
        options = {"--keep": "2", "--calibration": valid, "--out": str(tmp_path / "out"), **changes}
        words = [word for option in options.items() for word in option]
        assert cli.main(["prune-experts", str(folder), *words]) == 2, message
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and message in errors[0], errors
    assert sorted(tmp_path.rglob("*")) == before
    assert taken.read_text() == "what was there"
