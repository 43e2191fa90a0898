"""The model of gated convolutions: counted, trained, decoded token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ds_seq.config.flops import forward_flops
from ds_seq.config.model import ConvolutionalConfig
from ds_seq.config.model.section import LengthSums
from ds_seq.models import build_model
from ds_seq.models.convolutional import ConvolutionalModel
from ds_seq.models.packing import pack_weights
from ds_seq.modules.weight_norm import NormedLinear
from tests.batches import batch_of, padded, score

VOCAB = 23
SHAPES: dict[str, dict[str, Any]] = {
    "one width": {"encoder_convolutions": [[8, 3]] * 2, "decoder_convolutions": [[8, 3]] * 2},
    "widths": {
        "encoder_convolutions": [[8, 2], [6, 5], [6, 1]],
        "decoder_convolutions": [[6, 4], [10, 1]],
        "output_dim": 5,
    },
    "shared": {"share_embeddings": "all", "decoder_convolutions": [[8, 3]]},
    "plain maps": {"weight_norm": False, "share_embeddings": "inputs", "output_dim": 4},
}


def _config(**fields: Any) -> ConvolutionalConfig:
    small = {
        "embedding_dim": 8,
        "encoder_convolutions": [[8, 3]],
        "decoder_convolutions": [[6, 3], [8, 2]],
        "output_dim": 8,
        "dropout": 0.0,
        "max_positions": 40,
    }
    return ConvolutionalConfig.model_validate({"name": "convolutional", **small, **fields})


def _model(cfg: ConvolutionalConfig) -> ConvolutionalModel:
    model = build_model(cfg, VOCAB, 1, 0, seed=1)
    assert isinstance(model, ConvolutionalModel)
    with torch.no_grad():  # what starts at zero would hide a part that is not applied
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def _pairs() -> tuple[Tensor, Tensor]:
    """Four sources and targets, padded on the right."""
    source, target = torch.randint(4, VOCAB, (4, 7)), torch.randint(4, VOCAB, (4, 6))
    for row, length in enumerate((7, 4, 2, 6)):
        source[row, length:] = 1
        target[row, max(1, length - 1) :] = 1
    return source, target


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_model_is_counted_trained_and_decoded(fields: dict[str, Any]) -> None:
    cfg = _config(**fields)
    model, (source, target) = _model(cfg), _pairs()
    assert cfg.num_params(VOCAB).total == sum(each.numel() for each in model.parameters())
    score(model.train(), source, target).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    _walk(model.eval(), source, beam=3, length=14)


def _walk(model: ConvolutionalModel, source: Tensor, beam: int, length: int) -> None:
    """Decode along a random walk of hypotheses and sentences; compare with the whole forward."""
    history = torch.empty(len(source) * beam, 0, dtype=torch.int64)
    with torch.inference_mode():
        cache = model.start_cache(model.encode(*padded(source)), beam, length)
        for step in range(length):
            tokens = torch.randint(4, VOCAB, (len(history),))
            history = torch.cat([history, tokens[:, None]], 1)
            logits = model.decode_step(tokens, cache)
            full = score(model, source.repeat_interleave(beam, 0), history).logits[:, -1]
            torch.testing.assert_close(logits, full, atol=1e-5, rtol=1e-5)
            if step == 3:
                kept = torch.tensor([0, 3, 2])
                source = source[kept]
                history = history.view(-1, beam, step + 1)[kept].flatten(0, 1)
                cache.keep_sentences(kept)
            rows = torch.randint(beam, (len(source), beam))
            rows = (rows + beam * torch.arange(len(source))[:, None]).flatten()
            cache.reorder(rows)
            history = history[rows]


def test_padding_and_company_change_nothing() -> None:
    model, (source, target) = _model(_config(**SHAPES["widths"])), _pairs()
    with torch.no_grad():
        together = score(model, source, target).logits[2, :1]
        alone = score(model, source[2:3, :2], target[2:3, :1]).logits[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_maps_show_real_tokens_only() -> None:
    model, (source, target) = _model(_config()), _pairs()
    layers = score(model, source, target, "attention").layers
    assert layers is not None and len(layers.cross_attention) == 2
    for weights in layers.cross_attention:
        assert weights.shape == (4, 1, 6, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 1, 6))
        assert not weights.masked_select(source.eq(1)[:, None, None]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(dtype: torch.dtype) -> None:
    model, (source, target) = build_model(_config(), VOCAB, 1, 0, seed=1).eval(), _pairs()
    with torch.no_grad():
        exact = score(model, source, target).logits
        half = score(model.to(dtype), source, target).logits
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


def test_packed_weights_are_those_of_the_norm() -> None:
    model, (source, target) = _model(_config()), _pairs()
    with torch.inference_mode():
        expected = score(model, source, target).logits
        pack_weights(model)
        torch.testing.assert_close(score(model, source, target).logits, expected)


def test_length_and_direction_are_learned_apart() -> None:
    map = NormedLinear(6, 4, deviation=1.0)
    map.draw_parameters()
    torch.testing.assert_close(map.effective_weight(), map.weight)  # as drawn
    with torch.no_grad():
        map.weight.mul_(3.0)
        map.length[1] = 2.0
    torch.testing.assert_close(map.effective_weight().norm(dim=1)[1], torch.tensor(2.0))
    map(torch.randn(5, 6)).square().sum().backward()
    assert map.weight.grad is not None
    inner = (map.weight.grad * map.weight).sum(1)  # the gradient turns a direction
    torch.testing.assert_close(inner, torch.zeros(4), atol=1e-4, rtol=0.0)


def test_new_weights_keep_the_variance_of_deep_stacks() -> None:
    layers = [[64, 3]] * 12
    fields = {"embedding_dim": 64, "encoder_convolutions": layers, "output_dim": 64}
    model = build_model(_config(**fields, decoder_convolutions=[[64, 3]]), VOCAB, 1, 0, seed=1)
    with torch.no_grad():
        encoded = model.encode(*padded(torch.randint(4, VOCAB, (8, 30))))  # type: ignore[operator]
    # embeddings and positions have a deviation of 0.1 each
    assert 0.5 < encoded.hidden.std() / 0.02**0.5 < 2.0


def test_operations_are_those_that_torch_counts() -> None:
    cfg, (rows, length) = _config(**SHAPES["widths"]), (2, 6)
    source, target = torch.randint(4, VOCAB, (2, rows, length))
    with FlopCounterMode(display=False) as counter:
        _model(cfg)(batch_of(source, target).inputs)
    sums = LengthSums(*(float(rows * n) for n in (length, length, *[length**2] * 3)))
    expected = forward_flops(cfg, VOCAB)
    assert expected is not None and expected.of(sums) == counter.get_total_flops()


# numbers of parameters of fairseq 0.12.3.1 for vocabularies of 1,000
FAIRSEQ = {
    "fconv": 76_774_864,
    "fconv_iwslt_de_en": 4_714_448,
    "fconv_wmt_en_ro": 77_162_448,
    "fconv_wmt_en_de": 129_619_920,
    "fconv_wmt_en_fr": 178_161_616,
}


@pytest.mark.parametrize("preset", FAIRSEQ)
def test_presets_have_the_parameters_of_fairseq(preset: str) -> None:
    cfg = ConvolutionalConfig(name="convolutional", preset=preset)
    assert cfg.num_params(1000).total == FAIRSEQ[preset]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"share_embeddings": "decoder", "output_dim": 4}, "share_embeddings: decoder, but emb"),
        ({"encoder_convolutions": []}, "encoder_convolutions"),
        ({"encoder_convolutions": [[8]]}, "encoder_convolutions"),
        ({"encoder_convolutions": [[8, 3, 1, 1]]}, "encoder_convolutions"),
        ({"encoder_convolutions": [[8, 3], [8, 3, 3]]}, "layer 2 [8, 3, 3]: there are only 2"),
        ({"encoder_convolutions": "[(8, 3)] * 4"}, "encoder_convolutions"),
        ({"decoder_convolutions": [[8, 0]]}, "decoder_convolutions"),
        ({"preset": "fconv_wmt_en_dee"}, "did you mean 'fconv_wmt_en_de'?"),
        ({"num_heads": 4}, "num_heads"),
        ({"moe": {}}, "moe"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _config(**fields)
    assert words in str(caught.value)
