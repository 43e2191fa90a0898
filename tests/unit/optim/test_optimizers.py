"""Optimizers by name, and which parameters have weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_seq.config.base import ExternalConfig
from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.config.optim import AdafactorConfig, AdamConfig, SgdConfig
from ds_seq.errors import UserError
from ds_seq.models.build import build_seq2seq
from ds_seq.optim import build_optimizer, learning_rate, weight_decay
from ds_seq.optim.param_groups import parameter_groups, with_lr_factors
from ds_seq.plugins import trusting

CONFIGS = {
    torch.optim.Adam: AdamConfig(name="adam", lr=0.01, betas=(0.8, 0.9), eps=1e-6),
    torch.optim.AdamW: AdamConfig(name="adamw", lr=0.01, betas=(0.8, 0.9), eps=1e-6),
    torch.optim.Adafactor: AdafactorConfig(lr=0.01, beta2_decay=-0.7, clip_threshold=1.5),
    torch.optim.SGD: SgdConfig(lr=0.01, momentum=0.9, nesterov=True),
}
SETTINGS = {
    "betas": (0.8, 0.9),
    "eps": 1e-6,
    "beta2_decay": -0.7,
    "d": 1.5,
    "momentum": 0.9,
    "nesterov": True,
}


def model() -> nn.Module:
    sizes = {"d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    config = TransformerConfig(**sizes, moe=MoeConfig(num_experts=4))  # type: ignore[arg-type]
    return build_seq2seq(config, 30, 1, 0, seed=1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_settings_reach_the_optimizer(kind: type[torch.optim.Optimizer]) -> None:
    config = CONFIGS[kind]
    optimizer = build_optimizer(config, parameter_groups(model(), 0.1))
    assert type(optimizer) is kind
    decayed, plain = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.1, 0.0)
    for name, value in SETTINGS.items():
        if name in decayed and not (name == "eps" and kind is torch.optim.Adafactor):
            assert decayed[name] == value
    assert learning_rate(config) == 0.01 and weight_decay(config) == 0.0


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_optimizer_minimizes(kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = build_optimizer(CONFIGS[kind], [{"params": [weight], "weight_decay": 0.0}])
    for _ in range(5):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.square().sum() < 9.0


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    net = model()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, plain = (
        {names[id(p)] for p in group["params"]} for group in parameter_groups(net, 0.1)
    )
    assert decayed | plain == set(names.values()) and not decayed & plain
    assert all("bias" in name or "norm" in name or name[-2:] in ("b1", "b2") for name in plain)
    assert any(name.endswith("experts.w1") for name in decayed)
    assert any(name.endswith("experts.b1") for name in plain)
    assert not any("norm" in name for name in decayed)


def test_frozen_parameters_are_left_out_and_empty_groups_too() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    net[0].requires_grad_(False)
    (group,) = parameter_groups(net, 0.1)
    assert group["params"] == [net[1].weight]


def test_parts_have_factors_of_the_learning_rate() -> None:
    net = model()
    factors = {"experts": 0.5, "routers": 3.0, "embeddings": 0.2, "decoder": 2.0}
    whole = parameter_groups(net, 0.1)
    groups = with_lr_factors(whole, net, factors)
    found = {id(p): (g["lr_factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    decays = {id(p): g["weight_decay"] for g in whole for p in g["params"]}
    assert found.keys() == decays.keys() and sum(len(g["params"]) for g in groups) == len(found)
    for name, parameter in net.named_parameters():
        expected = 2.0 if name.startswith("decoder.") else 1.0
        expected *= 0.2 if "embedding." in name else 1.0
        expected *= 0.5 if ".experts." in name else 3.0 if ".gate." in name else 1.0
        assert found[id(parameter)] == (expected, decays[id(parameter)]), name


def test_without_factors_there_are_no_more_groups() -> None:
    groups = parameter_groups(model(), 0.1)
    assert with_lr_factors(groups, model(), {}) is groups


def test_an_external_optimizer_gets_its_options() -> None:
    config = ExternalConfig(name="torch.optim:RMSprop", options={"lr": 0.3, "alpha": 0.5})
    with trusting([config.name]):
        optimizer = build_optimizer(config, parameter_groups(nn.Linear(2, 2), 0.0))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.param_groups[0]["alpha"] == 0.5
    assert learning_rate(config) == 0.3 and weight_decay(config) == 0.0


def test_an_external_optimizer_must_name_its_learning_rate() -> None:
    with pytest.raises(UserError, match=r"optimizer\.options\.lr: missing"):
        learning_rate(ExternalConfig(name="torch.optim:RMSprop", options={}))
