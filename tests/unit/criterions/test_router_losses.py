"""Router losses, from the layers to the total of `model_and_base`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_seq.config.model import TransformerConfig
from ds_seq.criterions.base import Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.batch import Batch
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import ROUTER_LOSSES
from tests.batches import batch_of

VOCAB = 19


def make_model(**moe: Any) -> Seq2SeqTransformer:
    sizes = {"d_model": 8, "ffn_dim": 12, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    section = {"num_experts": 3, "capacity_factor": None, "every": 1, **moe}
    config = {**sizes, "dropout": 0.0, "moe": section}
    return build_seq2seq(TransformerConfig.model_validate(config), VOCAB, 1, 0, seed=1)


def make_batch(copies: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(2)
    src, tgt = (torch.randint(4, VOCAB, (3, 5), generator=generator) for _ in range(2))
    src[1, 3:], tgt[2, 2:] = 1, 1
    src, tgt = src.repeat(copies, 1), tgt.repeat(copies, 1)
    return batch_of(src, tgt)


def loss_of(model: Seq2SeqTransformer, batch: Batch, weights: dict[str, float]) -> Loss:
    criterion = ModelAndBase(CrossEntropy(0.1, "fairseq"), weights, ROUTER_LOSSES)
    return criterion(model(batch.inputs), batch)


@pytest.mark.parametrize("placement", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("name", ROUTER_LOSSES)
def test_each_loss_of_each_layer_reaches_the_total(placement: str, name: str) -> None:
    model = make_model(placement=placement, conditional_budget=0.4)
    silent = dict.fromkeys(("base", *ROUTER_LOSSES), 0.0)
    loss = loss_of(model, make_batch(), {**silent, name: 0.5})
    torch.testing.assert_close(loss.total, 0.5 * loss.parts[name])
    loss.total.backward()
    layers = [part for part in model.modules() if isinstance(part, MoeFeedForward)]
    assert len(layers) == (4 if placement == "both" else 2)
    for layer in layers:
        assert layer.branch is not None
        learner = layer.branch.mix.weight if name == "budget" else layer.gate.weight
        assert learner.grad is not None and learner.grad.abs().max() > 0


@pytest.mark.parametrize("router", ["softmax", "sigmoid", "expert_choice"])
def test_a_batch_twice_as_large_has_the_same_loss_per_token(router: str) -> None:
    model = make_model(router=router, placement="encoder")
    once, twice = (make_batch(copies) for copies in (1, 2))
    weights = {"load_balance": 0.7, "router_z": 0.3}
    per_token = [loss_of(model, b, weights).total / b.num_tokens for b in (once, twice)]
    torch.testing.assert_close(*per_token)


def test_expert_choice_has_no_load_balance_and_needs_none() -> None:
    model = make_model(router="expert_choice", placement="encoder")
    loss = loss_of(model, make_batch(), {"load_balance": 100.0, "router_z": 0.0})
    assert "load_balance" not in loss.parts and "router_z" in loss.parts
    torch.testing.assert_close(loss.total, loss.parts["ce"])


def test_the_loss_of_the_target_tokens_is_that_of_the_base_alone() -> None:
    model, batch = make_model(), make_batch()
    plain = CrossEntropy(0.1, "fairseq")(model(batch.inputs), batch)
    for weights in ({}, {"base": 0.5, "load_balance": 7.0}, {"base": 0.0}):
        loss = loss_of(model, batch, weights)
        torch.testing.assert_close(loss.of_tokens, plain.total.detach())
        assert loss.total != loss.of_tokens and not loss.of_tokens.requires_grad
