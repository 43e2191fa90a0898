"""Options of convolutions: what cannot go with them is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.changes import HARMLESS, TRAINING, rule_of
from ds_seq.config.fewer_layers import CopiedLayers, model_with
from ds_seq.config.model import TransformerConfig
from tests.unit.config.fixture_types import MakeConfig

BOTH = {"encoder_mixer": "dynamic_convolution", "decoder_mixer": "lightweight_convolution"}


def _of(**fields: Any) -> dict[str, Any]:
    return {"decoder_mixer": {"name": "dynamic_convolution", **fields}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**BOTH, "positions": "rotary"}, "positions: rotary is part of self-attention"),
        ({**BOTH, "attention_window": 4}, "attention_window: no stack has plain self-attention"),
        (_of(num_heads=3), "decoder_mixer.num_heads: 3 does not divide the 512 channels"),
        (_of(width=500), "decoder_mixer.num_heads: 8 does not divide the 500 channels"),
        (_of(kernel_sizes=[3, 5]), "kernel_sizes: has 2 sizes for 6 layers; give one for each"),
        (_of(kernel_sizes=[]), "kernel_sizes"),
        (_of(kernel_sizes=[0]), "kernel_sizes"),
        (_of(kernel_sizes="[3, 5]"), "kernel_sizes"),
        ({**BOTH, "pruned_heads": {"decoder": [[0]] * 6}}, "(decoder_mixer: lightweight_conv"),
        ({"decoder_mixer": "convolution"}, "decoder_mixer"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TransformerConfig.model_validate(fields)
    assert words in str(caught.value)


def test_kernels_grow_with_the_layers_unless_sizes_are_given() -> None:
    mixer = TransformerConfig.model_validate({**BOTH, "decoder_layers": 2}).convolution_of
    encoder, decoder = mixer("encoder"), mixer("decoder")
    assert encoder is not None and decoder is not None
    assert encoder.sizes(6) == [3, 7, 15, 31, 31, 31] and decoder.sizes(2) == [3, 7]
    one = TransformerConfig.model_validate(_of(kernel_sizes=[9])).convolution_of("decoder")
    assert one is not None and one.sizes(3) == [9, 9, 9]


def test_fewer_layers_keep_the_kernels_of_theirs() -> None:
    model = TransformerConfig.model_validate(BOTH)
    kept = model_with(model, CopiedLayers([0, 5], [1, 2, 3]))
    encoder, decoder = kept.convolution_of("encoder"), kept.convolution_of("decoder")
    assert encoder is not None and decoder is not None
    assert (encoder.sizes(2), decoder.sizes(3)) == ([3, 31], [7, 15, 31])


def test_attention_maps_cannot_be_learned_where_there_are_none(make: MakeConfig) -> None:
    criterion = {"name": "distillation", "teacher": "runs/t", "attention": {"kinds": ["decoder"]}}
    with pytest.raises(ValidationError, match=r"attention\.kinds: decoder has no attention maps"):
        make(criterion=criterion, model=_of())


def test_a_run_resumes_with_other_dropout_only() -> None:
    assert rule_of("model.decoder_mixer.weight_dropout") == TRAINING
    assert rule_of("model.decoder_mixer.kernel_sizes") not in (TRAINING, HARMLESS)
