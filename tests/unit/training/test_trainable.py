"""What is frozen, what is not, and that a changed bit is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.moe.balance import BiasBalancer
from ds_seq.names import ROUTER_LOSSES
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.training.trainable import (
    FrozenCheck,
    check_known,
    describe_frozen,
    freeze,
    frozen_parameters,
)
from ds_seq.weights.selection import Selection
from tests.batches import encode, score

VOCAB = 23
MOE = {"num_experts": 4, "top_k": 2, "every": 1, "capacity_factor": None, "router": "sigmoid"}


def build(**options: Any) -> Seq2SeqTransformer:
    sizes = {"d_model": 8, "ffn_dim": 12, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    config = TransformerConfig.model_validate(
        {**sizes, "dropout": 0.0, "max_positions": 16, "positions": "learned", **options}
    )
    return build_seq2seq(config, VOCAB, 1, 0, seed=1)


def forward(model: Seq2SeqTransformer) -> Any:
    generator = torch.Generator().manual_seed(1)
    src, tgt = (torch.randint(4, VOCAB, (3, 5), generator=generator) for _ in range(2))
    return score(model, src, tgt)


TABLES = ["encoder.positions.", "decoder.positions.", "target_embedding.", "source_embedding."]


@pytest.mark.parametrize("share", ["none", "decoder", "all"])
@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        ([], []),
        (["encoder"], ["encoder."]),
        (["embeddings"], TABLES),
        (["embeddings", "encoder"], ["encoder.", *TABLES]),
    ],
)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_parts_are_frozen_and_nothing_else(
    parts: list[str], prefixes: list[str], share: str, norm: str
) -> None:
    model = build(share_embeddings=share, norm_position=norm)
    freeze(model, parts)
    names = {name for name, _ in model.named_parameters()}
    expected = {name for name in names if name.startswith(tuple(prefixes))}
    assert {name for name, _ in frozen_parameters(model)} == expected
    assert ("output.weight" in names - expected) == (share == "none")
    groups = parameter_groups(model, 0.1)
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if name not in expected}


@pytest.mark.parametrize("parts", [["encoder"], ["embeddings"], ["encoder", "embeddings"]])
@pytest.mark.parametrize("moe", [None, MOE, {**MOE, "router": "softmax"}])
def test_gradients_reach_what_is_not_frozen_and_no_more(
    parts: list[str], moe: dict[str, Any] | None
) -> None:
    model = build(moe=moe, share_embeddings="none", activation_checkpointing=True)
    freeze(model, parts)
    output = forward(model)
    assert set(output.router_losses) <= set(ROUTER_LOSSES) and bool(output.router_losses) == bool(
        moe
    )
    total = output.logits.square().sum() + sum(output.router_losses.values(), torch.zeros(()))
    total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.any(), name


def test_a_frozen_encoder_and_embeddings_never_change() -> None:
    model = build(share_embeddings="all", moe=MOE)
    freeze(model, ["encoder", "embeddings"])
    src = torch.tensor([[5, 6, 7]])
    before = encode(model.eval(), src).hidden
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    balancer, model = BiasBalancer(model), model.train()
    for _ in range(3):
        output = forward(model)
        output.logits.square().sum().backward()
        balancer.add(output.moe_stats)
        optimizer.step()
        balancer.update()
    assert torch.equal(encode(model.eval(), src).hidden, before)


def test_balancing_biases_of_a_frozen_router_stay_and_others_move() -> None:
    model = build(moe=MOE)
    freeze(model, ["encoder"])
    balancer, check = BiasBalancer(model), FrozenCheck(model)
    for _ in range(2):
        balancer.add(forward(model).moe_stats)
        balancer.update()
    check.verify()
    steps = dict(model.named_buffers())
    assert not steps["encoder.layers.0.feed_forward.gate.bias_steps"].any()
    assert steps["decoder.layers.0.feed_forward.gate.bias_steps"].any()


def test_an_external_model_has_no_known_parts() -> None:
    model = nn.Linear(2, 2)
    freeze(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UserError, match="optimizer.lr_factors: Linear has no part experts"):
        check_known(nn.Linear(2, 2), Selection(["experts"]), "optimizer.lr_factors")
    with pytest.raises(UserError, match="train.freeze: Linear has no part encoder"):
        freeze(model, ["encoder"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_one_changed_bit_of_what_is_frozen_is_seen(dtype: torch.dtype) -> None:
    model = build(moe=MOE).to(dtype)
    freeze(model, ["encoder"])
    check = FrozenCheck(model)
    for parameter in model.decoder.parameters():
        parameter += 1
    model.target_embedding.weight += 1
    model.get_buffer("decoder.layers.0.feed_forward.gate.bias_steps").add_(1)
    check.verify()
    names = [name for name, _ in frozen_parameters(model)]
    for name in names:
        # the last bit of the last number; also of a zero
        number = model.get_parameter(name).flatten()[-1:].view(torch.uint8)
        number[0] ^= 1
        with pytest.raises(AssertionError, match=f"{name} is frozen"):
            check.verify()
        number[0] ^= 1
        check.verify()
    buffer = "encoder.layers.0.feed_forward.gate.bias_steps"
    model.get_buffer(buffer)[3] += 1
    with pytest.raises(AssertionError, match=f"{buffer} is frozen"):
        check.verify()


@torch.no_grad()
def test_a_zero_that_changes_its_sign_is_seen() -> None:
    model = build()
    freeze(model, ["encoder"])
    check = FrozenCheck(model)
    bias = model.get_parameter("encoder.layers.0.feed_forward.up.bias")
    assert bias[0] == 0.0
    bias[0] = -0.0
    with pytest.raises(AssertionError, match="up.bias is frozen"):
        check.verify()


def test_the_line_says_what_and_how_much() -> None:
    model = build()
    freeze(model, ["encoder", "embeddings"])
    count = sum(parameter.numel() for _, parameter in frozen_parameters(model))
    line = describe_frozen(model, ["encoder", "embeddings"], [], is_drawn=False)
    assert line.startswith(f"frozen: encoder, embeddings; {count:,} parameters on this rank\n")
    assert "at random; name a run in train.init_from" in describe_frozen(
        model, ["encoder"], [], True
    )
