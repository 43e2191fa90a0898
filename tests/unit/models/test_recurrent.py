"""The LSTM encoder-decoder: padding, decoding step by step, numbers of parameters, precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq.config.flops import forward_flops
from ds_seq.config.model import RecurrentConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models import build_model
from ds_seq.modules.linear import Linear
from ds_seq.modules.lstm_decoder import _Cell

VOCAB = 17
SIZES = {
    "encoder_embedding_dim": 12,
    "decoder_embedding_dim": 12,
    "encoder_hidden_dim": 10,
    "decoder_hidden_dim": 14,
    "output_dim": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dropout": 0.0,
}
CASES: list[dict[str, Any]] = [
    {},
    {"input_feeding": False, "share_embeddings": "decoder"},
    {"attention": False, "bidirectional": False, "share_embeddings": "none", "output_bias": True},
    {"attention": False, "input_feeding": False, "residual": True},
    {"residual": True, "encoder_layers": 1, "decoder_layers": 3, "share_embeddings": "inputs"},
    {"bidirectional": False, "encoder_hidden_dim": 14, "output_dim": 14, "decoder_layers": 1}
    | {"share_embeddings": "none"},
]
SOURCES, TARGETS = (7, 3, 5), (4, 6, 2)
EXACT = {"atol": 2e-6, "rtol": 1e-5}


def made(**options: Any) -> tuple[RecurrentConfig, nn.Module]:
    config = RecurrentConfig.model_validate({"name": "recurrent", **SIZES, **options})
    model = build_model(config, VOCAB, 1, 0, seed=1)
    with torch.no_grad():  # away from the start, where all scores are nearly the same
        for parameter in model.parameters():
            parameter.mul_(5)
    return config, model


def padded(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randint(4, VOCAB, mask.shape)
    return tokens.masked_fill(~mask, 1), mask


def inputs_of(sources: tuple[int, ...] = SOURCES, targets: tuple[int, ...] = TARGETS) -> Any:
    return Seq2SeqInputs(*padded(sources), *padded(targets), sum(targets), sum(sources))


@pytest.mark.parametrize("options", CASES, ids=str)
def test_padding_mates_and_steps_change_nothing(options: dict[str, Any]) -> None:
    config, model = made(**options)
    size = config.num_params(VOCAB)
    assert size.total == sum(parameter.numel() for parameter in model.parameters())
    inputs = inputs_of()
    logits = model(inputs).logits
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    rows = logits.detach().split(TARGETS)
    model.eval()
    with torch.no_grad():
        for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
            alone = [x[i : i + 1, :source] for x in inputs[:2]]
            alone += [x[i : i + 1, :target] for x in inputs[2:4]]
            torch.testing.assert_close(
                model(Seq2SeqInputs(*alone, target, source)).logits, rows[i], **EXACT
            )
        cache = model.start_cache(model.encode(*inputs[:2]), 2, 10)
        steps = [
            model.decode_step(tokens.repeat_interleave(2), cache) for tokens in inputs.target.t()
        ]
    for row, scores in enumerate(torch.stack(steps, 1)):
        want = rows[row // 2]
        torch.testing.assert_close(scores[: len(want)], want, **EXACT)


@pytest.mark.parametrize("options", CASES[:3], ids=str)
@torch.no_grad()
def test_states_follow_the_beam(options: dict[str, Any]) -> None:
    _, model = made(**options)
    model.eval()
    source, mask = padded(SOURCES)
    prefixes = torch.randint(4, VOCAB, (6, 3))

    def last_scores(source: Tensor, mask: Tensor, prefixes: Tensor) -> Tensor:
        cache = model.start_cache(model.encode(source, mask), len(prefixes) // len(source), 9)
        return [model.decode_step(tokens, cache) for tokens in prefixes.t()][-1]

    cache = model.start_cache(model.encode(source, mask), 2, 9)
    for tokens in prefixes[:, :2].t():
        model.decode_step(tokens, cache)
    cache.keep_sentences(torch.tensor([2, 1]))  # rows 4 5 2 3
    cache.reorder(torch.tensor([1, 0, 2, 2]))
    followed = [5, 4, 2, 2]
    third = torch.tensor([8, 9, 10, 11])
    found = model.decode_step(third, cache)
    paths = torch.cat([prefixes[followed, :2], third[:, None]], 1)
    kept = [2, 1]
    torch.testing.assert_close(found, last_scores(source[kept], mask[kept], paths), **EXACT)
    assert sum(x.numel() for x in cache.state.layers) == 2 * 2 * 4 * 14  # whatever the length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(dtype: torch.dtype) -> None:
    _, model = made()
    inputs = inputs_of()
    want = model(inputs).logits
    half = model.to(dtype)
    logits = half(inputs).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), want, atol=0.25, rtol=0.05)
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())


def test_dropout_is_off_in_evaluation_and_draws_in_training() -> None:
    _, model = made(dropout=0.5)
    inputs = inputs_of()
    first, second = (model(inputs).logits for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(inputs).logits, model(inputs).logits)


def test_the_map_of_the_attention_is_returned() -> None:
    config, model = made(decoder_layers=1)
    inputs = inputs_of()
    layers = model(inputs, "attention").layers
    (weights,) = layers.cross_attention  # (B, 1, T, S)
    assert weights.shape == (3, 1, 6, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1, 6))
    assert not weights[1, 0, :, SOURCES[1] :].any()
    assert config.attention_maps == ("cross",)
    config, model = made(attention=False)
    assert config.attention_maps == () == model(inputs, "attention").layers.cross_attention


def gradient_order(model: nn.Module, batches: list[Any]) -> set[tuple[str, ...]]:
    """Return the orders in which gradients are complete, one for each batch."""
    order: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    found = set()
    for batch in batches:
        order.clear()
        output = model(batch)
        (output if isinstance(output, Tensor) else output.logits).sum().backward()
        found.add(tuple(order))
    return found


@pytest.mark.parametrize("options", CASES, ids=str)
def test_gradients_come_in_one_order_whatever_the_batch(options: dict[str, Any]) -> None:
    # ZeRO stage 2 adds up what comes at the same place on each rank
    batches = [
        inputs_of(),
        inputs_of((2,), (1,)),
        inputs_of((1,), (5,)),
        inputs_of((3, 3), (2, 2)),
        inputs_of((9, 1, 1, 1), (1, 1, 8, 1)),
    ]
    assert len(gradient_order(made(**options)[1], batches)) == 1


def test_a_linear_map_has_one_order_of_gradients_for_all_kernels() -> None:
    small, large = torch.randn(2, 64), torch.randn(4096, 64)  # MKL and oneDNN
    assert len(gradient_order(Linear(64, 64), [small, large])) == 1


def test_the_gradient_of_a_cell() -> None:
    gates = torch.randn(3, 8, dtype=torch.double, requires_grad=True)
    cell = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(_Cell.apply, (gates, cell))


def test_operations_are_those_of_the_products() -> None:
    config, _ = made()
    flops = forward_flops(config, VOCAB)
    assert flops is not None
    encoder = 2 * 4 * 10 * (12 + 10 + 20 + 10)  # two ways of two layers
    assert flops.per_source == 2 * (encoder + 2 * 14 * 20)
    decoder = 4 * 14 * (12 + 14 + 14 + 14 + 14)
    assert flops.per_target == 2 * (decoder + 14 * 14 + 14 * 12 + 12 * VOCAB)
    assert flops.per_cross_pair == 2 * 2 * 14
