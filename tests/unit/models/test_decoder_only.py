"""The decoder-only model: parameters, causality, padding, cached decoding, refused settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ds_seq.config.flops import forward_flops
from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.data.source import TokenBlock
from ds_seq.data.text_batch import text_batch
from ds_seq.models import build_model
from ds_seq.text.tokenizer import Symbols

VOCAB = 23
SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
SIZES = {"d_model": 16, "decoder_layers": 2, "num_heads": 2, "ffn_dim": 24, "dropout": 0.0}
BANDS = {"cutoffs": [7, 10], "factor": 2}
AXES: list[dict[str, Any]] = [
    {},
    {"moe": {"every": 1, "num_experts": 2, "capacity_factor": None}, "norm": "rms"},
    {"decoder_mixer": "retention", "positions": "none", "norm_position": "pre"},
    {"decoder_mixer": {"name": "dilated", "segment_lengths": [2, 6], "dilations": [1, 2]}},
    {"share_embeddings": "none", "embedding_dim": 8, "positions": "rotary", "num_kv_heads": 1},
    {"norm_position": "deepnorm", "activation": "swiglu", "positions": "alibi"},
    {"norm_position": "subln", "output_bias": True, "decoder_repeats": 2, "attention_window": 2},
    {"share_embeddings": "none", "final_norm": False, "norm_position": "pre", "adaptive": BANDS},
    {"adaptive": {**BANDS, "tie_projections": True}},
    {"adapters": {"ids": ["a"], "active": "a"}, "lora": {"rank": 2}, "positions": "learned"},
]
TEXTS = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]


def config(**options: Any) -> DecoderOnlyConfig:
    return DecoderOnlyConfig.model_validate({"name": "decoder_only", **SIZES, **options})


@pytest.mark.parametrize("options", AXES)
def test_an_axis_counts_decodes_and_ignores_mates(options):
    section = config(**options)
    model = build_model(section, VOCAB, 1, 0, seed=1).eval()
    size = section.num_params(VOCAB)
    assert size.total == sum(parameter.numel() for parameter in model.parameters())
    assert forward_flops(section, VOCAB).per_source == 0
    batch = text_batch(TokenBlock.of(TEXTS), SYMBOLS)
    with torch.inference_mode():
        logits = model(batch.inputs).logits
        cache = model.start_cache(model.encode(*batch.inputs[:2]), 1, 8)
        steps = [model.decode_step(batch.inputs.tokens[:, n], cache) for n in range(5)]
        stepped = torch.stack(steps, 1)[batch.mask]
        torch.testing.assert_close(stepped, logits, atol=1e-5, rtol=1e-5)
        alone = text_batch(TokenBlock.of(TEXTS[1:2]), SYMBOLS)
        own = model(alone.inputs).logits
        torch.testing.assert_close(own, logits[5:8], atol=1e-5, rtol=1e-5)
        changed = text_batch(TokenBlock.of([[5, 6, 20, 8, 2]]), SYMBOLS)  # the third of five
        other = model(changed.inputs).logits
        torch.testing.assert_close(other[:3], logits[:3], atol=1e-5, rtol=1e-5)
        assert (other[3:] - logits[3:5]).abs().max() > 1e-3


def test_presets_have_the_published_sizes():
    """Parameters of fairseq's architectures with a vocabulary of 50,257, positions not counted."""
    sizes = {
        name: config_of(name).num_params(50257).total / 1e6
        for name in ("lm_gpt", "lm_gpt2_medium", "lm_gpt3_small")
    }
    assert sizes["lm_gpt"] == pytest.approx(85.05 + 2 * 38.6, abs=0.1)
    assert sizes["lm_gpt2_medium"] == pytest.approx(708.5 + 2 * 64.33, abs=0.3)
    assert 124 < sizes["lm_gpt3_small"] < 126, "called 125M"
    assert config_of("lm_gpt2_tiny").ffn_dim == 64
    unread = 6 * 512  # biases of convolutions that fairseq never reads
    assert config_of("lightconv_lm").num_params(300_000).total == 325_024_768 - unread
    assert config_of("lightconv_lm_gbw").num_params(300_000).total == 338_103_296 - unread
    with pytest.raises(ValidationError, match=r"no preset 'lm_gpt2_smal' \(did you mean 'lm_gpt2"):
        config_of("lm_gpt2_smal")


def config_of(preset: str) -> DecoderOnlyConfig:
    return DecoderOnlyConfig.model_validate({"name": "decoder_only", "preset": preset})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_layers": 2}, "encoder_layers"),
        ({"multiway": {"markers": {"a": 1}}}, "multiway"),
        ({"moe": {"every": 1, "router": "language"}}, "language: a model decoder_only has no sou"),
        ({"moe": {"every": 1, "router": "expert_choice"}}, "expert_choice"),
        ({"share_embeddings": "inputs"}, "has one input; use all"),
        ({"lora": {"stacks": "encoder"}}, "encoder, which a model decoder_only does not have"),
        ({"adapters": {"ids": ["a"], "tags": {"<x>": "a"}}}, "no source with a tag"),
    ],
)
def test_what_needs_a_source_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        config(**options)
