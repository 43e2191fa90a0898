"""The `generation` section: what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.generation import GenerationConfig


@pytest.mark.parametrize(
    "given",
    [
        {"sampling": True},
        {"sampling": True, "sampling_top_k": 5},
        {"sampling": True, "sampling_top_p": 0.9, "sampling_top_k": 0},
        {"sampling": True, "sampling_epsilon": 0.01, "sampling_top_p": 1.0},
        {"beam": 6, "diverse_groups": 3, "diverse_strength": 0.0},
        {"beam": 1, "diverse_siblings": 0.7},
        {"seed": 4, "temperature": 0.5, "length_penalty_form": "gnmt", "unk_penalty": 3},
    ],
)
def test_what_goes_together(given: dict[str, Any]) -> None:
    assert GenerationConfig.model_validate(given).model_dump(include=set(given)) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampling_top_k": 5}, "sampling_top_k: has no effect without sampling: true"),
        ({"sampling_top_p": 0.5}, "sampling_top_p: has no effect without sampling: true"),
        ({"sampling_epsilon": 0.5}, "sampling_epsilon: has no effect without sampling: true"),
        (
            {"sampling": True, "sampling_top_k": 5, "sampling_top_p": 0.5},
            "sampling_top_p: cannot be combined with sampling_top_k",
        ),
        (
            {"sampling": True, "sampling_epsilon": 0.1, "sampling_top_p": 0.5},
            "sampling_epsilon: cannot be combined with sampling_top_p",
        ),
        ({"sampling": True, "sampling_top_p": 0.0}, "sampling_top_p"),
        ({"sampling": True, "sampling_epsilon": 1.0}, "sampling_epsilon"),
        ({"diverse_groups": 0}, "diverse_groups"),
        ({"diverse_groups": 2}, "diverse_groups: 2 groups do not divide a beam of 5"),
        ({"diverse_strength": 1.0}, "diverse_strength: has no effect without diverse_groups"),
        (
            {"diverse_groups": 5, "diverse_siblings": 1.0},
            "diverse_siblings: cannot be combined with diverse_groups",
        ),
        (
            {"diverse_groups": 5, "sampling": True},
            "diverse_groups: cannot be combined with sampling",
        ),
        (
            {"diverse_siblings": 0.5, "sampling": True},
            "diverse_siblings: cannot be combined with sampling",
        ),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"unk_penalty": -0.1}, "unk_penalty"),
        ({"length_penalty_form": "marian"}, "length_penalty_form"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationConfig.model_validate(given)
    assert message in str(caught.value)
