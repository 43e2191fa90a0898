"""What one update sends, measured on two ranks: the figures on paper in ARCHITECTURE.md."""

from __future__ import annotations

from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist

from benchmarks.messages import EXPERTS, Measured, make_lab, measure
from tests.distributed.harness import run_distributed

D_MODEL, TOP_K, MOE_LAYERS = 32, 2, 1  # layers with experts of each stack
ALWAYS = 8 * 5  # the sizes and flags on which ranks agree before each update


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lab(tmp_path_factory.mktemp("messages"))


def _large(found: Measured) -> dict[str, int]:
    """Bytes by kind, in groups of several ranks, without flags and norms."""
    kinds = {m.kind for m in found.messages if m.num_bytes > ALWAYS and m.group_size > 1}
    several = found._replace(messages=[m for m in found.messages if m.group_size > 1])
    return {kind: several.total(kind, at_least=ALWAYS + 1) for kind in sorted(kinds)}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"all_reduce": 1}),
        pytest.param(1, {"all_gather_into_tensor": 1, "all_reduce": 1}, marks=pytest.mark.slow),
        (2, {"all_gather_into_tensor": 1, "all_reduce": 1}),
        pytest.param(
            3, {"all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}, marks=pytest.mark.slow
        ),
    ],
)
def test_gradients_and_weights(stage: int, expected: dict[str, int], lab: Path) -> None:
    """Stages 1 and 2 of DeepSpeed sum gradients on all ranks, and then gather the weights."""
    found = measure(lab, stage)[0]
    size = 4 * found.dense_parameters
    sent = _large(found)
    assert sent.keys() == expected.keys()
    for kind, times in expected.items():
        # small parameters of stage 3 are left out here; others are padded to equal parts
        assert sent[kind] == pytest.approx(times * size, rel=0.05 if stage == 3 else 1e-3), kind


def test_an_all_to_all_has_each_token_top_k_times(lab: Path) -> None:
    """Four times a layer: there and back, and the gradients; and the counts of each expert."""
    ranks = measure(lab, 1, *EXPERTS, "train.expert_parallel=2")
    rows = sum(rank.source_tokens + rank.target_tokens for rank in ranks) * MOE_LAYERS * TOP_K
    sent = sum(rank.total("all_to_all_single", at_least=ALWAYS) for rank in ranks)
    assert sent == 4 * rows * D_MODEL * 4
    counts = [m for m in ranks[0].messages if m.type == "int64"]
    assert [m.num_bytes for m in counts] == [8 * 4] * 2 * MOE_LAYERS
    assert all(m.kind == "all_to_all_single" for m in counts)


def _kept_collectives() -> dict[str, int]:
    """Count calls of DeepSpeed, whose functions are replaced after it has begun."""
    calls = dict.fromkeys(("all_gather_into_tensor", "reduce_scatter_tensor"), 0)
    for name in calls:
        original = vars(dist)[name]

        def counted(*args: object, _name: str = name, _original: object = original, **more: object):
            calls[_name] += 1
            return _original(*args, **more)  # type: ignore[operator]

        setattr(dist, name, counted)
    own, both = torch.ones(2), torch.zeros(4)
    deepspeed.comm.all_gather_into_tensor(both, own)
    deepspeed.comm.reduce_scatter_tensor(own, both)
    assert both.tolist() == [1.0] * 4 and own.tolist() == [2.0] * 2
    return calls


def test_collectives_that_deepspeed_keeps_are_seen() -> None:
    """By the recorder, which says whether a rank that hangs is waiting for others."""
    for calls in run_distributed(_kept_collectives, 2):
        assert calls == {"all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
