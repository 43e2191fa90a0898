"""Pools of adapters: counted, identical at the start, chosen by id and by tag within a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ds_seq.models import attach_adapters
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.adapter import AdapterChoice, AdapterPool
from ds_seq.training.trainable import freeze
from tests.batches import encode, score
from tests.unit.models.test_sublayers import walk

VOCAB, D, F = 23, 16, 4
MOE = {"num_experts": 4, "top_k": 2, "every": 1, "capacity_factor": None}
POOL = {"ids": ["a", "b", "to"], "active": "a"}
LAYERS = 4
FIRST_TAG, SECOND_TAG = 4, 5


def _trained(model: Seq2SeqTransformer) -> Seq2SeqTransformer:
    """Move all adapters away from the identity, each elsewhere."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def _with_tags(source: torch.Tensor) -> torch.Tensor:
    """Sources (4, S) that begin with one tag, the other, none, and the first again."""
    tagged = source.clone()
    tagged[:, 0] = torch.tensor([FIRST_TAG, SECOND_TAG, 9, FIRST_TAG])
    return tagged


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_an_adapter_has_as_many_parameters_as_published(build, config, gate, activation):
    model = build(adapters={**POOL, "gate": gate, "activation": activation})
    freeze(model, [], ["adapters.a"])
    parts = 2 if activation == "swiglu" else 1
    one = parts * (D * F + F) + F * D + D + 2 * D + (D + 1 if gate else 0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LAYERS * one
    without = build()
    size = config(adapters={**POOL, "gate": gate, "activation": activation}).num_params(VOCAB)
    plain = sum(p.numel() for p in without.parameters())
    assert size.total == plain + 3 * LAYERS * one
    assert size.active == plain + LAYERS * one


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("norm", ["pre", "post", "subln", "deepnorm"])
def test_untrained_adapters_change_nothing(build, pairs, norm, moe):
    settings = {"norm_position": norm, "moe": moe, "encoder_repeats": 2}
    plain = build(**settings).eval()
    model = build(**settings, adapters={**POOL, "gate": True}).eval()
    assert torch.equal(score(plain, *pairs).logits, score(model, *pairs).logits)


def test_a_norm_after_the_sum_changes_even_an_untrained_one(build, pairs):
    """The reason for the default: the original puts this norm into post-norm models."""
    plain, model = build(), build(adapters={**POOL, "norm": "last"})
    with torch.no_grad():
        for net in (plain, model):
            for name, parameter in net.named_parameters():
                if name.endswith("feed_forward_residual.norm.weight"):
                    parameter.mul_(2.0)
    assert (score(plain, *pairs).logits - score(model, *pairs).logits).abs().max() > 1e-3


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("norm", ["first", "last"])
def test_ids_make_different_models_and_rows_of_a_batch_may_differ(build, pairs, moe, norm):
    model = _trained(build(adapters={**POOL, "norm": norm, "gate": True}, moe=moe)).eval()
    source = _with_tags(pairs.src)
    by_id = {}
    for name in ("a", "b", "to", None):
        model.adapters = None if name is None else AdapterChoice(name)
        by_id[name] = score(model, source, pairs.tgt).logits
    for name, logits in by_id.items():
        others = [other for key, other in by_id.items() if key != name]
        assert all((logits - other).abs().max() > 1e-2 for other in others)
    model.adapters = AdapterChoice("to", {FIRST_TAG: "a", SECOND_TAG: "b"})
    mixed = score(model, source, pairs.tgt).logits
    for row, name in enumerate(("a", "b", "to", "a")):
        torch.testing.assert_close(mixed[row], by_id[name][row], atol=1e-6, rtol=1e-6)
        alone = score(model, source[row : row + 1], pairs.tgt[row : row + 1]).logits[0]
        torch.testing.assert_close(mixed[row], alone, atol=1e-5, rtol=1e-5)
    model.adapters = AdapterChoice(None, {FIRST_TAG: "a", SECOND_TAG: "b"})
    mixed = score(model, source, pairs.tgt).logits
    torch.testing.assert_close(mixed[2], by_id[None][2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_mixed_sentences_decode_as_they_are_scored(build, pairs, beam, norm):
    """Also when sentences finish and others take their places."""
    adapters = {**POOL, "gate": True}
    model = _trained(build(adapters=adapters, norm_position=norm, decoder_repeats=2)).eval()
    model.adapters = AdapterChoice("to", {FIRST_TAG: "a", SECOND_TAG: "b"})
    walk(model, _with_tags(pairs.src), beam, 40)


def test_a_gate_does_not_look_at_other_sentences(build, pairs):
    model = _trained(build(adapters={**POOL, "gate": True})).eval()
    together = encode(model, pairs.src).hidden[2, :2]
    alone = encode(model, pairs.src[2:3, :2]).hidden[0]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "experts"])
def test_one_adapter_is_trained_and_all_else_stays(build, pairs, moe, checkpointing):
    model = _trained(build(adapters=POOL, moe=moe, activation_checkpointing=checkpointing))
    freeze(model, [], ["adapters.a"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    score(model, *pairs).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained)
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (".for_a." not in name), name


def test_every_adapter_of_a_tag_has_a_gradient_whatever_the_batch(build, pairs):
    """Ranks whose batches have other languages reduce the same gradients."""
    model = build(adapters=POOL)
    model.adapters = AdapterChoice(None, {FIRST_TAG: "a", SECOND_TAG: "b"})
    freeze(model, [], ["adapters"])
    score(model, pairs.src.clamp(min=9), pairs.tgt).logits.sum().backward()
    for name, parameter in model.named_parameters():
        is_used = ".for_a." in name or ".for_b." in name
        assert (parameter.grad is not None) == parameter.requires_grad == is_used, name


def test_pools_of_one_stack(build, pairs):
    model = build(adapters={**POOL, "stacks": "decoder"})
    pools = [n for n, module in model.named_modules() if isinstance(module, AdapterPool)]
    assert pools == ["decoder.layers.0.adapters", "decoder.layers.1.adapters"]
    freeze(model, [], ["adapters"])
    score(model, *pairs).logits.sum().backward()
    assert model.get_parameter("decoder.layers.0.adapters.for_a.up.weight").grad.any()


class _Tokenizer:
    """A source vocabulary with two tags."""

    tag_ids = frozenset({FIRST_TAG, SECOND_TAG})

    def pieces(self, ids: Any) -> list[str]:
        return [{FIRST_TAG: "<2de>", SECOND_TAG: "<2fr>"}[i] for i in ids]


def test_tags_and_ids_are_looked_up(build, config):
    adapters = {"ids": ["a", "b"], "tags": {"<2de>": "b", "<2fr>": "a"}}
    model, cfg = build(adapters=adapters), config(adapters=adapters)
    assert model.adapters is None, "no tokenizer, no tags"
    attach_adapters(model, cfg, _Tokenizer())
    assert model.adapters == AdapterChoice(None, {FIRST_TAG: "b", SECOND_TAG: "a"})
    attach_adapters(model, cfg, _Tokenizer(), "b")
    assert model.adapters == AdapterChoice("b")
    attach_adapters(model, cfg, _Tokenizer(), "none")
    assert model.adapters is None
    with pytest.raises(Exception, match=r"no adapter 'c' in the model; its adapters are a, b"):
        attach_adapters(model, cfg, _Tokenizer(), "c")
    with pytest.raises(Exception, match=r"it has none"):
        attach_adapters(build(), config(), _Tokenizer(), "c")
    other = config(adapters={"ids": ["a"], "tags": {"<2da>": "a"}})
    with pytest.raises(Exception, match=r"<2da> is not one of .*did you mean '<2de>'"):
        attach_adapters(model, other, _Tokenizer())


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({"ids": []}, "at least 1 item"),
        ({"ids": ["a", "a"]}, "has an id twice"),
        ({"ids": ["none"]}, "stands for no adapter"),
        ({"ids": ["a.b"]}, "should match pattern"),
        ({"ids": ["de"], "active": "dee"}, "no adapter dee .did you mean 'de'"),
        ({"ids": ["de"], "tags": {"<2fr>": "fr"}}, "no adapter fr"),
        ({"ids": ["de"], "reduction": 17}, "17 is more than d_model 16"),
    ],
)
def test_mistakes_are_named(config, adapters, message):
    with pytest.raises(ValidationError, match=message):
        config(adapters=adapters)
