"""Notes of `check` on what is slow or imprecise on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.config.gpu_notes import gpu_notes
from tests.unit.config.fixture_types import MakeConfig

EXPERTS = {"moe": {"num_experts": 4}}


@pytest.mark.parametrize(
    ("model", "train", "stage", "words"),
    [
        ({}, {"precision": "fp32"}, 0, []),
        ({}, {"precision": "fp16"}, 0, []),
        (EXPERTS, {"precision": "bf16"}, 1, []),
        (EXPERTS, {"precision": "fp16"}, 1, ["one after another in fp16"]),
        (EXPERTS, {"precision": "fp32"}, 1, ["one after another in fp32"]),
        ({**EXPERTS, "ffn_dim": 100}, {"precision": "bf16"}, 1, ["multiples of 8, unlike 100"]),
        ({"moe": {"num_experts": 4, "ffn_dim": 100}}, {"precision": "bf16"}, 1, ["unlike 100"]),
        ({"ffn_dim": 100}, {"precision": "bf16"}, 1, []),
        ({}, {"precision": "bf16", "accumulate": 2}, 0, ["gradients of 2 batches in bf16"]),
        ({}, {"precision": "bf16", "accumulate": 2}, 1, []),
        ({}, {"precision": "fp32", "accumulate": 2}, 0, []),
    ],
)
def test_notes(
    make: MakeConfig, model: dict[str, Any], train: dict[str, Any], stage: int, words: list[str]
) -> None:
    notes = list(gpu_notes(make(model=model, train=train), stage))
    assert len(notes) == len(words)
    for note, word in zip(notes, words, strict=True):
        assert word in note
