"""Options of dilated attention: what cannot go with them is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.model import TransformerConfig


def _dilated(segment_lengths: list[Any], dilations: list[Any]) -> dict[str, Any]:
    return {"name": "dilated", "segment_lengths": segment_lengths, "dilations": dilations}


BOTH = {"encoder_mixer": "dilated", "decoder_mixer": "dilated"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"encoder_mixer": _dilated([64, 64], [1, 2])},
            "segment_lengths: must ascend, not [64, 64]",
        ),
        (
            {"encoder_mixer": _dilated([64, 128], [1])},
            "dilations: 1 for 2 segment_lengths; give one for each",
        ),
        ({"decoder_mixer": _dilated([64], [2])}, "dilations: the first must be 1, not 2"),
        (
            {"decoder_mixer": _dilated([4, 8], [1, 16])},
            "dilations: 16 leaves no token in a segment of 8 to some heads",
        ),
        ({"decoder_mixer": _dilated([], [])}, "segment_lengths"),
        ({"decoder_mixer": _dilated(["[64]"], [1])}, "segment_lengths"),
        (
            {"encoder_mixer": "dilated", "positions": "alibi"},
            "positions: alibi is a bias of all pairs of tokens, which dilated attention",
        ),
        ({"decoder_mixer": "dilated", "positions": "buckets"}, "positions: buckets is a bias"),
        ({**BOTH, "attention_window": 8}, "attention_window: no stack has plain self-attention"),
        (
            {"encoder_mixer": "retention", "decoder_mixer": "dilated", "attention_window": 8},
            "attention_window: no stack has plain self-attention",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TransformerConfig.model_validate(fields)
    assert words in str(caught.value)


def test_it_has_the_parameters_of_attention() -> None:
    fields = {"num_kv_heads": 2, "query_key_norm": True, "lora": {"rank": 2}, "positions": "rotary"}
    plain = TransformerConfig.model_validate(fields)
    dilated = TransformerConfig.model_validate({**fields, **BOTH})
    assert plain.num_params(100) == dilated.num_params(100)
