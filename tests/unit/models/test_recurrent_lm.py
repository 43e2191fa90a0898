"""The language model of LSTM layers: parameters, causality, padding, decoding, precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ds_seq.config.flops import forward_flops
from ds_seq.config.model import RecurrentLmConfig
from ds_seq.config.model.upgrade import stable_json
from ds_seq.models import build_model
from tests.unit.models.test_recurrent import gradient_order
from tests.unit.models.text_models import check_beam, check_steps, inputs_of

VOCAB = 23
SIZES = {"decoder_embedding_dim": 12, "decoder_hidden_dim": 10, "output_dim": 12, "dropout": 0.0}
CASES: list[dict[str, Any]] = [
    {"decoder_layers": 2, "residual": True},
    {"share_embeddings": "none", "output_bias": True, "output_dim": 10},
    {"share_embeddings": "none", "output_dim": 8, "decoder_layers": 3},
    {"output_bias": True},
]
TEXTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]


def config(**options: Any) -> RecurrentLmConfig:
    return RecurrentLmConfig.model_validate({"name": "recurrent_lm", **SIZES, **options})


def made(**options: Any) -> nn.Module:
    """Build a model whose weights are so large that each token matters to those after it."""
    model = build_model(config(**options), VOCAB, 1, 0, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


@pytest.mark.parametrize("options", CASES, ids=str)
@torch.no_grad()
def test_padding_mates_later_tokens_and_steps_change_nothing(options: dict[str, Any]) -> None:
    model = made(**options).eval()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert config(**options).num_params(VOCAB).total == total
    check_steps(model, TEXTS, 20, 1e-2)


@torch.no_grad()
def test_states_follow_the_beam() -> None:
    model = made(decoder_layers=2).eval()
    cache = check_beam(model, TEXTS, VOCAB)
    assert sum(part.numel() for part in cache.state) == 2 * 2 * 4 * 10  # whatever the length


@pytest.mark.parametrize("options", CASES, ids=str)
def test_gradients_come_in_one_order_whatever_the_batch(options: dict[str, Any]) -> None:
    # ZeRO stage 2 adds up what comes at the same place on each rank
    batches = [inputs_of(texts) for texts in (TEXTS, TEXTS[:1], [[2]], [[5] * 30, [2]])]
    model = made(**options)
    assert len(gradient_order(model, batches)) == 1
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(dtype: torch.dtype) -> None:
    model, inputs = made(decoder_layers=2), inputs_of(TEXTS)
    want = model(inputs).logits
    logits = model.to(dtype)(inputs).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), want, atol=0.25, rtol=0.05)
    logits.float().logsumexp(-1).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    cache = model.start_cache(model.encode(*inputs[:2]), 1, 8)
    assert model.decode_step(inputs.tokens[:, 0], cache).dtype == dtype


def test_dropout_is_off_in_evaluation_and_draws_in_training() -> None:
    model, inputs = made(dropout=0.5), inputs_of(TEXTS)
    assert not torch.equal(model(inputs).logits, model(inputs).logits)
    model.eval()
    assert torch.equal(model(inputs).logits, model(inputs).logits)


def test_operations_are_those_of_the_products() -> None:
    flops = forward_flops(config(decoder_layers=2), VOCAB)
    assert flops is not None
    weights = 4 * 10 * (12 + 10 + 10 + 10) + 10 * 12
    assert flops == (0, 2 * (weights + 12 * VOCAB), 0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_dim": 8}, "share_embeddings: all, but decoder_embedding_dim is 12 and output_di"),
        ({"share_embeddings": "inputs"}, "share_embeddings"),
        ({"encoder_layers": 1}, "encoder_layers"),
        ({"moe": {"num_experts": 2}}, "moe"),
    ],
)
def test_mistakes_name_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)


def test_fingerprints_stay_the_same_when_options_are_added() -> None:
    section = RecurrentLmConfig(name="recurrent_lm", residual=True)
    assert stable_json(section) == b'{"name":"recurrent_lm","residual":true}'
