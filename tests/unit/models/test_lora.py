"""Low-rank changes: counted, nothing at the start, trained alone, merged exactly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ds_seq.models import merge_changes
from ds_seq.models.packing import pack_weights
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.linear import Linear
from ds_seq.modules.lora import Lora, LoraLinear
from ds_seq.training.trainable import freeze
from tests.batches import score
from tests.unit.models.test_sublayers import walk

VOCAB = 23
MOE = {"num_experts": 4, "top_k": 2, "every": 1, "capacity_factor": None, "shared_experts": 1}
ALL = ["query", "key", "value", "output", "up", "down"]
CASES: dict[str, dict[str, Any]] = {
    "as published": {"lora": {}},
    "stabilized": {"lora": {"rank": 3, "rank_stabilized": True, "modules": ALL}},
    "decoder": {"lora": {"rank": 2, "modules": ["output", "down"], "stacks": "decoder"}},
    "keys": {"lora": {"modules": ["key"]}, "num_heads": 4, "num_kv_heads": 1},
    "gated": {"lora": {"rank": 2, "modules": ALL}, "activation": "swiglu"},
    "experts": {"lora": {"rank": 2, "modules": [*ALL, "experts"]}, "moe": MOE},
    "gated experts": {"lora": {"modules": ["experts"]}, "moe": MOE, "activation": "geglu"},
    "experts with norms": {
        "lora": {"rank": 2, "modules": ["experts"]},
        "moe": MOE,
        "norm_position": "subln",
    },
    "repeats": {"lora": {"modules": ALL}, "encoder_repeats": 2, "decoder_repeats": 2},
}


def _trained(model: Seq2SeqTransformer, by: float = 0.2) -> Seq2SeqTransformer:
    """Move all changes away from zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


@pytest.mark.parametrize("name", CASES)
def test_changes_are_counted_and_nothing_at_the_start(build, config, pairs, name):
    settings = CASES[name]
    model = build(**settings).eval()
    size = config(**settings).num_params(VOCAB)
    assert size.total == sum(parameter.numel() for parameter in model.parameters())
    plain = build(**{**settings, "lora": None}).eval()
    assert size.active > config(**{**settings, "lora": None}).num_params(VOCAB).active
    assert torch.equal(score(plain, *pairs).logits, score(model, *pairs).logits)
    shared = dict(plain.named_parameters())
    assert all(torch.equal(value, dict(model.named_parameters())[n]) for n, value in shared.items())
    changed = score(_trained(model), *pairs).logits
    assert (changed - score(plain, *pairs).logits).abs().max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_merged_weights_give_the_same_scores(build, config, pairs, name):
    model = _trained(build(**CASES[name]), by=0.03).eval()
    expected = score(model, *pairs).logits
    merged = copy.deepcopy(model)
    merge_changes(merged, config(**CASES[name]))
    plain = build(**{**CASES[name], "lora": None}).eval()
    plain.load_state_dict(merged.state_dict())
    for net in (merged, plain):
        torch.testing.assert_close(score(net, *pairs).logits, expected, atol=1e-6, rtol=1e-6)
    with torch.inference_mode():
        pack_weights(merged)
        torch.testing.assert_close(score(merged, *pairs).logits, expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(TypeError, match="merge"):
            pack_weights(model)


@pytest.mark.parametrize("name", CASES)
def test_large_changes_are_merged_exactly_in_double_precision(build, config, pairs, name):
    model = _trained(build(**CASES[name])).double().eval()
    expected = score(model, *pairs).logits
    merge_changes(model, config(**CASES[name]))
    assert not any(".lora." in key for key, _ in model.named_parameters())
    # routers compute in single precision, whatever the model's
    bound = 1e-6 if "moe" in CASES[name] else 1e-12
    torch.testing.assert_close(score(model, *pairs).logits, expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("name", CASES)
def test_changes_alone_are_trained_and_decode_as_scored(build, pairs, name):
    model = _trained(build(**CASES[name])).train()
    freeze(model, [], ["lora"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    output = score(model, *pairs)
    (output.logits.square().sum() + sum(output.router_losses.values())).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora." in key and value.grad is not None for key, value in trained.items())
    torch.optim.AdamW(list(trained.values()), lr=0.01, weight_decay=0.5).step()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in trained), key
    walk(model.eval(), pairs.src, 3, 40)


def test_a_part_of_a_fused_map_is_changed_like_a_map_of_its_own() -> None:
    fused, own = Linear(6, 9, parts=[4, 2, 3]), Linear(6, 3)
    with torch.no_grad():
        own.weight.copy_(fused.weight[6:])
        own.bias.copy_(fused.bias[6:])
    parts = Lora(6, fused.widths, [False, False, True], 2, 0.5, 0.0)
    alone = Lora(6, own.widths, [True], 2, 0.5, 0.0)
    torch.nn.init.normal_(parts.down)
    torch.nn.init.normal_(parts.up)
    alone.load_state_dict(parts.state_dict())
    x = torch.randn(5, 6)
    before = fused(x)
    y = LoraLinear(fused, parts)(x)
    assert torch.equal(y[:, :6], before[:, :6])
    torch.testing.assert_close(y[:, 6:], LoraLinear(own, alone)(x))
    change = 0.5 * (x @ parts.down.T) @ parts.up.T
    torch.testing.assert_close(y[:, 6:] - before[:, 6:], change)


@pytest.mark.parametrize("changed", [(True, False, True), (False, True, False), (True, True, True)])
def test_large_products_have_the_gradients_of_small_ones(changed: tuple[bool, ...]) -> None:
    """Batches of real sizes take other kernels than those of the other tests."""
    base = Linear(128, 384, parts=3)
    lora = Lora(128, base.widths, changed, 4, 0.5, 0.0)
    torch.nn.init.normal_(lora.down, std=0.1)
    torch.nn.init.normal_(lora.up, std=0.1)
    map = LoraLinear(base, lora)
    x = torch.randn(2, 300, 128, requires_grad=True)
    weights = torch.randn(2, 300, 384)
    (map(x) * weights).sum().backward()
    found = [x.grad, lora.down.grad, lora.up.grad, map.weight.grad]
    x.grad = lora.down.grad = lora.up.grad = map.weight.grad = None
    whole = map.weight + torch.cat(
        [
            block if is_changed else torch.zeros(128, 128)
            for block, is_changed in zip(_blocks(lora, changed), changed, strict=True)
        ]
    )
    (torch.nn.functional.linear(x, whole, map.bias) * weights).sum().backward()
    expected = [x.grad, lora.down.grad, lora.up.grad, map.weight.grad]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def _blocks(lora: Lora, changed: tuple[bool, ...]) -> list[torch.Tensor]:
    """The change of each part, with autograd; zeros stand for parts without one."""
    downs, ups = iter(lora.down.split(4)), iter(lora.up.split(128))
    return [0.5 * next(ups) @ next(downs) if is_changed else lora.down for is_changed in changed]


def test_dropout_is_on_the_input_of_the_change_only(build, pairs):
    settings = {"lora": {"modules": ALL, "dropout": 0.5}}
    model = build(**settings).train()
    assert torch.equal(score(model, *pairs).logits, score(model, *pairs).logits)
    _trained(model)
    assert not torch.equal(score(model, *pairs).logits, score(model, *pairs).logits)
    model.eval()
    assert torch.equal(score(model, *pairs).logits, score(model, *pairs).logits)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(build, pairs, precision):
    model = _trained(build(**CASES["gated"]), by=0.05).eval()
    expected = score(model, *pairs).logits
    found = score(model.to(precision), *pairs).logits
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"modules": ["experts"]}}, "model.moe is null"),
        ({"lora": {"modules": ["query", "query"]}}, "has one twice"),
        ({"lora": {}, "linear": "bitnet"}, "cannot change weights that are rounded"),
        ({"lora": {"modules": []}}, "at least 1 item"),
    ],
)
def test_mistakes_are_named(config, settings, message):
    with pytest.raises(ValidationError, match=message):
        config(**settings)
