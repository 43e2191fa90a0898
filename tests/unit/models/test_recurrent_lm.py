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
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import TextInputs, text_batch
from ds_seq.models import build_model
from ds_seq.text.tokenizer import Symbols
from tests.unit.models.test_recurrent import gradient_order

VOCAB = 23
SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
SIZES = {"decoder_embedding_dim": 12, "decoder_hidden_dim": 10, "output_dim": 12, "dropout": 0.0}
CASES: list[dict[str, Any]] = [
    {"decoder_layers": 2, "residual": True},
    {"share_embeddings": "none", "output_bias": True, "output_dim": 10},
    {"share_embeddings": "none", "output_dim": 8, "decoder_layers": 3},
    {"output_bias": True},
]
TEXTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def config(**options: Any) -> RecurrentLmConfig:
    return RecurrentLmConfig.model_validate({"name": "recurrent_lm", **SIZES, **options})


def made(**options: Any) -> nn.Module:
    """Build a model whose weights are so large that each token matters to those after it."""
    model = build_model(config(**options), VOCAB, 1, 0, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def inputs_of(texts: list[list[int]]) -> TextInputs:
    return text_batch(TokenBlock.of(texts), SYMBOLS).inputs


@pytest.mark.parametrize("options", CASES, ids=str)
@torch.no_grad()
def test_padding_mates_later_tokens_and_steps_change_nothing(options: dict[str, Any]) -> None:
    model = made(**options).eval()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert config(**options).num_params(VOCAB).total == total
    inputs = inputs_of(TEXTS)
    logits = model(inputs).logits
    cache = model.start_cache(model.encode(*inputs[:2]), 1, 8)
    steps = [model.decode_step(tokens, cache) for tokens in inputs.tokens.t()]
    torch.testing.assert_close(torch.stack(steps, 1)[inputs.target_mask], logits, **EXACT)
    torch.testing.assert_close(model(inputs_of(TEXTS[1:2])).logits, logits[5:8], **EXACT)
    changed = model(inputs_of([[5, 6, 20, 8, 2]])).logits  # the third of five
    torch.testing.assert_close(changed[:3], logits[:3], **EXACT)
    assert (changed[3:] - logits[3:5]).abs().max() > 1e-2


@torch.no_grad()
def test_states_follow_the_beam() -> None:
    model = made(decoder_layers=2).eval()
    prefixes = torch.randint(4, VOCAB, (6, 3))
    inputs = inputs_of(TEXTS)
    cache = model.start_cache(model.encode(*inputs[:2]), 2, 9)
    for tokens in prefixes[:, :2].t():
        model.decode_step(tokens, cache)
    cache.keep_sentences(torch.tensor([2, 1]))  # rows 4 5 2 3
    cache.reorder(torch.tensor([1, 0, 2, 2]))
    third = torch.tensor([8, 9, 10, 11])
    found = model.decode_step(third, cache)
    paths = torch.cat([prefixes[[5, 4, 2, 2], :2], third[:, None]], 1)
    other = model.start_cache(model.encode(paths, paths > 0), 1, 9)
    want = [model.decode_step(tokens, other) for tokens in paths.t()][-1]
    torch.testing.assert_close(found, want, **EXACT)
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
