"""Presets are fairseq's architectures, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.presets import PRESETS, architectures, preset_of

# numbers of parameters that fairseq 0.12.3.1 has for a vocabulary of 1,000 and the embeddings
# shared by none, by the decoder, by all: `benchmarks/parity/fairseq_presets.py --golden`
FAIRSEQ = {
    "tiny": (326_400, 262_400, 198_400),
    "iwslt_de_en": (33_079_296, 32_567_296, 32_055_296),
    "wmt_en_de": (45_674_496, 45_162_496, 44_650_496),
    "vaswani_wmt_en_de_big": (179_429_376, 178_405_376, 177_381_376),
    "vaswani_wmt_en_fr_big": (179_429_376, 178_405_376, 177_381_376),
    "wmt_en_de_big": (179_429_376, 178_405_376, 177_381_376),
    "wmt_en_de_big_t2t": (179_433_472, 178_409_472, 177_385_472),
    "base": (45_678_592, 45_166_592, 44_654_592),
    "base12L": (89_817_088, 89_305_088, 88_793_088),
    "base18L": (133_955_584, 133_443_584, 132_931_584),
    "base24L": (178_094_080, 177_582_080, 177_070_080),
    "big": (179_437_568, 178_413_568, 177_389_568),
    "huge": (325_754_880, 324_218_880, 322_682_880),
    "huge_RS": (58_142_720, 56_606_720, 55_070_720),
    "deep": (834_289_664, 833_265_664, 832_241_664),
    "lightconv_iwslt_de_en": (28_899_840, 28_387_840, 27_875_840),
    "lightconv_wmt_en_de": (46_505_984, 45_993_984, 45_481_984),
    "lightconv_wmt_en_de_big": (182_755_328, 181_731_328, 180_707_328),
    "lightconv_wmt_en_fr_big": (182_755_328, 181_731_328, 180_707_328),
    "lightconv_wmt_zh_en_big": (182_755_328, 181_731_328, 180_707_328),
}
# those that do not show in the number of parameters: heads, dropout of residuals, attention and
# activation, position of the norms, activation
FIELDS: dict[str, tuple[Any, ...]] = {
    "tiny": (2, 0.1, 0.0, 0.0, "post", "relu"),
    "iwslt_de_en": (4, 0.1, 0.0, 0.0, "post", "relu"),
    "wmt_en_de": (8, 0.1, 0.0, 0.0, "post", "relu"),
    "vaswani_wmt_en_de_big": (16, 0.3, 0.0, 0.0, "post", "relu"),
    "vaswani_wmt_en_fr_big": (16, 0.1, 0.0, 0.0, "post", "relu"),
    "wmt_en_de_big": (16, 0.3, 0.1, 0.0, "post", "relu"),
    "wmt_en_de_big_t2t": (16, 0.3, 0.1, 0.1, "pre", "relu"),
    **{name: (8, 0.1, 0.0, 0.0, "pre", "gelu") for name in FAIRSEQ if name.startswith("base")},
    **{name: (16, 0.1, 0.0, 0.0, "pre", "gelu") for name in ("big", "huge", "huge_RS", "deep")},
    "lightconv_iwslt_de_en": (4, 0.1, 0.1, 0.0, "post", "relu"),
    "lightconv_wmt_en_de": (8, 0.1, 0.0, 0.0, "post", "relu"),
    "lightconv_wmt_en_de_big": (16, 0.3, 0.1, 0.0, "post", "relu"),
    "lightconv_wmt_en_fr_big": (16, 0.1, 0.1, 0.0, "post", "relu"),
    "lightconv_wmt_zh_en_big": (16, 0.2, 0.2, 0.0, "post", "relu"),
}


def test_all_presets_are_compared() -> None:
    known = {name for name in PRESETS if "retnet" not in name}
    assert known == FAIRSEQ.keys() | {f"ds_moe_{name}" for name in FAIRSEQ}


@pytest.mark.parametrize("preset", FAIRSEQ)
def test_a_preset_is_the_architecture_of_fairseq(preset: str) -> None:
    for sharing, count in zip(("none", "decoder", "all"), FAIRSEQ[preset], strict=True):
        model = TransformerConfig(preset=preset, share_embeddings=sharing)
        assert model.num_params(1000).total == count
    dropouts = (model.dropout, model.attention_dropout, model.activation_dropout)
    assert (model.num_heads, *dropouts, model.norm_position, model.activation) == FIELDS[preset]
    assert (model.embedding_norm, model.embedding_scale) == (model.activation == "gelu", True)
    assert model.positions.name == "sinusoidal" and model.norm.name == "layer"
    calls = (model.calls_of("encoder"), model.calls_of("decoder"))
    assert calls == ((6, 6) if "RS" in preset else (model.encoder_layers, model.decoder_layers))


@pytest.mark.parametrize("preset", FAIRSEQ)
def test_its_twin_differs_by_its_experts_only(preset: str) -> None:
    model, twin = TransformerConfig(preset=preset), TransformerConfig(preset=f"ds_moe_{preset}")
    assert model.moe is None and twin.moe is not None
    assert twin.model_copy(update={"moe": None, "preset": preset}) == model
    depth = model.encoder_layers
    expected = [0] if depth == 1 else list(range(1, depth, 2))
    assert twin.moe_layers("encoder") == twin.moe_layers("decoder") == expected


def test_convolutions_are_those_of_fairseq() -> None:
    for preset in (name for name in FAIRSEQ if name.startswith("lightconv")):
        model = TransformerConfig(preset=preset)
        for stack, layers in (("encoder", 7), ("decoder", 6)):
            section = model.convolution_of(stack)
            assert section is not None and section.name == "dynamic_convolution"
            assert section.sizes(model.layers_of(stack)) == [3, 7, 15, 31, 31, 31, 31][:layers]
            is_small = preset == "lightconv_iwslt_de_en"
            assert (section.glu, section.input_dropout) == (not is_small, 0.0 if is_small else 0.1)
            assert section.dropped(model.attention_dropout) == model.attention_dropout


def test_names_of_architectures() -> None:
    for architecture, preset in architectures():
        assert preset_of(architecture) == preset
    assert preset_of("transformer_ds_moe_wmt_en_de_big_t2t") == "ds_moe_wmt_en_de_big_t2t"
    assert preset_of("transformer_deepspeed_moe") == "ds_moe_wmt_en_de"
    assert preset_of("transformer_18_18") == "deep" and preset_of("huge_rs") == "huge_RS"
    assert preset_of("transformer_lm") is None and preset_of("lstm") is None
