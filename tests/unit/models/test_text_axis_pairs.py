"""Every pair of values of different axes of a language model: see `test_axis_pairs.py`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.models import build_model
from tests.batches import text_inputs
from tests.covering import all_pairs, covering_rows
from tests.unit.models.test_axis_pairs import AXES as PAIR_AXES
from tests.unit.models.test_axis_pairs import LORA, moved_by_training

VOCAB, STEPS = 23, 6
SIZES = {"d_model": 16, "decoder_layers": 1, "num_heads": 4, "ffn_dim": 24, "dropout": 0.1}
BANDS = {"cutoffs": [7, 10], "factor": 2}
_OF_PAIRS = ("multiway", "pruned")
_OF_PAIRS_VALUES = ("inputs", "chosen", "repeats")


def _axes() -> Mapping[str, Mapping[str, dict[str, Any]]]:
    """Return the axes of encoder-decoders that a decoder alone has, and its own."""
    shared = {
        axis: {
            name: fields
            for name, fields in values.items()
            if name not in _OF_PAIRS_VALUES and "encoder_mixer" not in fields
        }
        for axis, values in PAIR_AXES.items()
        if axis not in _OF_PAIRS
    }
    segments = {"name": "dilated", "segment_lengths": [2, 5], "dilations": [1, 2]}
    shared["mixer"] = {**shared["mixer"], "dilated": {"decoder_mixer": segments}}
    return {
        **shared,
        "repeats": {"repeats": {"decoder_repeats": 2}},
        "ends": {
            "bands": {"adaptive": BANDS},
            "tied bands": {"adaptive": {**BANDS, "tie_projections": True}},
            "softmax": {
                "adaptive": {**BANDS, "input": False},
                "share_embeddings": "none",
            },
        },
        "final norm": {"no final norm": {"final_norm": False}},
    }


AXES = _axes()
NEEDED = {"no final norm": {"norm_position": "pre"}, "retention": {"positions": "none"}}
"""What a value goes with, if a row does not say."""
_BANDS = tuple(AXES["ends"])
_TURNED = ("rotary", "xpos", "yarn", "ntk", "alibi", "buckets")
_ATTENDING = ("window", "shared", "one", "head width", "query norms")
REFUSED = {
    "dilated": ("alibi", "buckets", "window"),
    "retention": ("sinusoidal", "offset", "learned", *_TURNED, *_ATTENDING),
    "convolution": (*_TURNED, *_ATTENDING),
    "no final norm": ("post", "deepnorm"),
    "output bias": _BANDS,
    **dict.fromkeys(("factor", "apart"), _BANDS),
    **dict.fromkeys(("ternary", "binary"), LORA),
}
"""Values that cannot go with others."""
FIELDS = dict(chain.from_iterable(values.items() for values in AXES.values()))
NAMES = {axis: list(values) for axis, values in AXES.items()}
PAIRS = all_pairs(NAMES)
REFUSED_PAIRS = {frozenset((one, other)) for one, others in REFUSED.items() for other in others}
ROWS = covering_rows(NAMES, REFUSED_PAIRS)


def config(names: tuple[str, ...]) -> DecoderOnlyConfig:
    settings: dict[str, Any] = {"name": "decoder_only", **SIZES}
    for name in names:
        settings |= FIELDS[name]
    for name, fields in NEEDED.items():
        settings = {**fields, **settings} if name in names else settings
    return DecoderOnlyConfig.model_validate(settings)


def _continues(model: nn.Module, tokens: torch.Tensor) -> None:
    """Compare cached steps of two hypotheses with whole texts (B, 2, T)."""
    with torch.inference_mode():
        encoded = model.encode(tokens[:, 0, :1], torch.ones(len(tokens), 1, dtype=torch.bool))
        cache = model.start_cache(encoded, 2, max_length=STEPS)
        for step in range(STEPS):
            logits = model.decode_step(tokens[..., step].flatten(), cache)
        full = model(text_inputs(tokens.flatten(0, 1))).logits.unflatten(0, (-1, STEPS))
    torch.testing.assert_close(logits, full[:, -1], atol=1e-5, rtol=1e-5)


def _check(names: tuple[str, ...]) -> None:
    section = config(names)
    model = build_model(section, VOCAB, 1, 0, seed=1)
    weights = list(model.parameters())
    assert section.num_params(VOCAB).total == sum(weight.numel() for weight in weights)
    tokens = torch.randint(4, VOCAB, (3, 2, STEPS), generator=torch.Generator().manual_seed(3))
    inputs = text_inputs(tokens[:, 0])
    moved = moved_by_training(model, lambda: model(inputs))
    assert moved > 0.5 * len(weights), "an expert without tokens stays, all else is trained"
    # In float32, an activation may be rounded to one or the other of two of its 8-bit levels.
    dtype = torch.float64 if "ternary" in names else torch.float32
    _continues(model.eval().to(dtype), tokens)


def _is_refused(names: tuple[str, ...]) -> bool:
    try:
        config(names)
    except ValidationError as error:
        assert all(each["msg"] for each in error.errors())
        return True
    return False


@pytest.mark.parametrize("names", ROWS, ids="-".join)
def test_rows_with_all_pairs_train_and_continue_texts(names):
    _check(names)


def test_only_pairs_that_cannot_go_together_are_refused():
    assert {frozenset(pair) for pair in PAIRS if _is_refused(pair)} == REFUSED_PAIRS


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [pair for pair in PAIRS if frozenset(pair) not in REFUSED_PAIRS], ids="-".join
)
def test_a_pair_trains_and_continues_texts(names):
    _check(names)
