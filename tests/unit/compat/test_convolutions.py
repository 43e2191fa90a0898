"""Lists of layers of fconv are read, and never evaluated."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.compat.fairseq.convolutions import gated_section
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.errors import UserError


def _section(**arguments: Any) -> dict[str, Any]:
    refusals = Refusals()
    section = gated_section(arguments, refusals)
    refusals.raise_any("x.pt")
    return section


def test_sums_and_multiples_of_lists_are_read() -> None:
    section = _section(encoder_layers="[(512, 3)] * 2 + [(1024, 1)]", decoder_layers="[(8, 3, 1)]")
    assert section["encoder_convolutions"] == [[512, 3], [512, 3], [1024, 1]]
    assert section["decoder_convolutions"] == [[8, 3, 1]]
    assert section["max_positions"] == 1022 and section["share_embeddings"] == "none"
    assert len(_section()["decoder_convolutions"]) == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder_layers": "__import__('os').system('false')"}, "--encoder-layers"),
        ({"encoder_layers": "[(512, 3)] * 10**9"}, "--encoder-layers"),
        ({"encoder_layers": "[(512, 3)] * 999 * 999"}, "--encoder-layers"),
        ({"encoder_layers": "[512, 3]"}, "--encoder-layers"),
        ({"encoder_layers": "(" * 5000}, "--encoder-layers"),
        ({"decoder_layers": "[(8, 3), (8, 3, 2, 1)]"}, "--decoder-layers"),
        ({"decoder_attention": "[True, False]"}, "every layer attends"),
        ({"decoder_embed_dim": 256}, "--encoder-embed-dim 512 and --decoder-embed-dim 256"),
    ],
)
def test_what_no_model_has_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        _section(**arguments)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1
