"""The norm counts each expert once and one coefficient scales all gradients, in every wrapper.

DeepSpeed has a wrapper around the optimizer for each stage and precision; each computes the norm in
its own way. Here one update in each is compared with the whole gradients that led to it: by default
each wrapper in one mode or two, and as slow tests in all modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq.config.model import MoeConfig
from ds_seq.models.build import build_seq2seq
from tests.distributed import spine
from tests.distributed.harness import run_distributed

MAX_NORM = 0.5  # of norms above 3
# wide experts, so that what they count is seen in the norm of half-precision gradients too
MOE = MoeConfig(num_experts=4, top_k=2, capacity_factor=None, every=1, ffn_dim=96)
MODEL = spine.small_model(moe=MOE)
ROUNDING = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-3}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
# the default is fp32, which in stage 1 has a wrapper of its own
BF16_SUMS = {"data_types": {"grad_accum_dtype": "bf16"}}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparse": {"sparse_clip": True},
    "free": {"clip": 0.0},
}
FP16 = {"fp16": {"initial_scale_power": 6, "hysteresis": 1, "loss_scale_window": 1}}
WRAPPERS: dict[str, dict[str, Any]] = {
    **{f"fp32-{stage}": {"stage": stage} for stage in range(4)},
    **{f"bf16-{stage}": {"stage": stage, "precision": "bf16"} for stage in range(4)},
    **{
        f"fp16-{stage}": {"stage": stage, "precision": "fp16", "sections": FP16}
        for stage in range(4)
    },
    "bf16-1-bf16-sums": {"stage": 1, "precision": "bf16", "sections": BF16_SUMS},
    "fp16-2-offload": {"stage": 2, "precision": "fp16", "sections": FP16, "zero": OFFLOAD},
    "fp16-3-offload": {"stage": 3, "precision": "fp16", "sections": FP16, "zero": OFFLOAD},
}
# half precision without ZeRO cannot have experts on several ranks
ALONE = [name for name in WRAPPERS if name in ("fp32-0", "bf16-0", "fp16-0", "fp32-2", "fp32-3")]
SPREAD = [name for name in WRAPPERS if name not in ("bf16-0", "fp16-0")]
# each wrapper, and each mode in each precision and in stages with and without whole gradients
SAMPLE = {
    "alone": {"fp32-0": ["sparse"], "bf16-0": ["plain"], "fp16-0": ["free"]},
    "spread": {
        "fp32-0": ["plain"],
        "fp32-1": ["sparse"],
        "fp32-2": ["plain"],
        "fp32-3": ["sparse"],
        "bf16-1": ["plain"],
        "bf16-2": ["sparse"],
        "bf16-3": ["plain", "sparse"],
        "bf16-1-bf16-sums": ["sparse"],
        "fp16-1": ["sparse", "free"],
        "fp16-2": ["plain"],
        "fp16-3": ["free"],
        "fp16-2-offload": ["free"],
        "fp16-3-offload": ["sparse"],
    },
}


class Update(NamedTuple):
    """One update with SGD and without decay, and all that it depended on."""

    norm: float
    loss_scales: tuple[float, float]
    """Before and after."""
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def _modes(name: str) -> list[str]:
    # gradients that are not clipped tell whether they were divided by the right loss scale
    return ["plain", "sparse", "free"] if name.startswith("fp16") else ["plain", "sparse"]


Updates = dict[tuple[str, str], list[Update]]


def _updates(modes: dict[str, list[str]], expert_parallel: int) -> Updates:
    return {
        (name, mode): _train(expert_parallel, {**WRAPPERS[name], **MODES[mode]})
        for name in modes
        for mode in modes[name]
    }


def _train(expert_parallel: int, options: dict[str, Any]) -> list[Update]:
    """One update; where nothing is clipped a second one, in which the fp16 loss scale grows."""
    common = {"optimizer": spine.SGD, "clip": MAX_NORM, "decay": 0.0, "model": MODEL}
    options = {**common, **options}
    engine = spine.make_engine(expert_parallel=expert_parallel, **options)
    made = []
    for update in range(1 if options["clip"] else 2):
        before, old_scale = spine.all_weights(engine), engine.loss_scale
        gradients: dict[str, Tensor] = {}

        def note(into: dict[str, Tensor] = gradients) -> None:
            into.update(spine.all_gradients(engine))

        [(_, norm, applied)] = spine.train(engine, range(update, update + 1), note)
        assert applied
        whole = {name: value / old_scale for name, value in gradients.items()}
        scales = (old_scale, engine.loss_scale)
        made.append(Update(norm, scales, whole, before, spine.all_weights(engine)))
    return made


@pytest.fixture(scope="module")
def alone() -> list[Updates]:
    """The sample, in one process."""
    return run_distributed(_updates, 1, SAMPLE["alone"], 1)


@pytest.fixture(scope="module")
def spread() -> list[Updates]:
    """The sample, on two ranks that share the experts."""
    return run_distributed(_updates, 2, SAMPLE["spread"], 2, timeout=120.0)


@pytest.fixture(scope="module")
def rest_alone() -> list[Updates]:
    """What the sample leaves out, in one process."""
    return run_distributed(_updates, 1, REST["alone"], 1)


@pytest.fixture(scope="module")
def rest_spread() -> list[Updates]:
    """What the sample leaves out, on two ranks that share the experts."""
    return run_distributed(_updates, 2, REST["spread"], 2, timeout=120.0)


REST = {
    where: {
        name: [mode for mode in _modes(name) if mode not in SAMPLE[where].get(name, ())]
        for name in names
    }
    for where, names in (("alone", ALONE), ("spread", SPREAD))
}
CASES = [
    pytest.param(f"{prefix}{where}", name, mode, marks=marks)
    for prefix, modes_of, marks in (("", SAMPLE, ()), ("rest_", REST, pytest.mark.slow))
    for where, modes in modes_of.items()
    for name in modes
    for mode in modes[name]
]


@pytest.mark.parametrize(("where", "name", "mode"), CASES)
def test_one_coefficient_from_a_norm_that_counts_each_expert_once(
    where: str, name: str, mode: str, request: pytest.FixtureRequest
) -> None:
    model = build_seq2seq(MODEL, spine.VOCAB, 1, 0, seed=1) if mode == "sparse" else None
    for ranks in request.getfixturevalue(where):
        for update in ranks[name, mode]:
            assert update.norm == pytest.approx(spine.norm_of(update.gradients, model), rel=1e-4)
            assert update.norm > MAX_NORM
            coefficient = 1.0 if mode == "free" else MAX_NORM / (update.norm + 1e-6)
            applied = {}
            for key, gradient in update.gradients.items():
                applied[key] = (update.before[key] - update.after[key]) / spine.SGD.lr
                torch.testing.assert_close(
                    applied[key], coefficient * gradient, rtol=1e-3, atol=2e-6, msg=key
                )
            if mode != "free":
                assert spine.norm_of(applied, model) <= MAX_NORM * (1 + 1e-5)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        pytest.param(*case.values[:2], marks=case.marks)
        for case in CASES
        if case.values[2] == "free"
    ],
)
def test_the_loss_scale_grew_in_the_test_above(
    where: str, name: str, request: pytest.FixtureRequest
) -> None:
    ranks = request.getfixturevalue(where)
    first, second = (update.loss_scales for update in ranks[0][name, "free"])
    assert first == (64.0, 64.0)
    assert second == (64.0, 128.0)


def _norms_of_one_process() -> dict[str, float]:
    return {
        mode: spine.emulate(1, model=MODEL, sparse_clip=mode == "sparse").steps[0][1]
        for mode in MODES
    }


@pytest.mark.parametrize("where", ["spread", pytest.param("rest_spread", marks=pytest.mark.slow)])
def test_every_wrapper_finds_the_norm_of_one_process(
    where: str, request: pytest.FixtureRequest
) -> None:
    expected = run_distributed(_norms_of_one_process, 1)[0]
    assert expected["sparse"] < (1 - 5 * ROUNDING["bf16"]) * expected["plain"]
    for (name, mode), updates in request.getfixturevalue(where)[0].items():
        rounding = ROUNDING[name.split("-")[0]]
        assert updates[0].norm == pytest.approx(expected[mode], rel=rounding), name


PADDED = [("fp32", 1), ("fp32", 2), ("bf16", 2)]


def _norms_with_padding() -> list[float]:
    """Norms of an update on 3 ranks, between which no group of parameters divides evenly."""
    found = []
    for precision, stage in PADDED:
        options = {"precision": precision, "optimizer": spine.SGD, "clip": MAX_NORM}
        engine = spine.make_engine(
            stage, 1, sparse_clip=True, model=MODEL, micro_batches=3, **options
        )
        found.append(spine.train(engine, range(1))[0][1])
    return found


def test_padding_counts_for_nothing_in_the_weighted_norm() -> None:
    expected = spine.emulate(1, model=MODEL, sparse_clip=True, micro_batches=3).steps[0][1]
    for norms in run_distributed(_norms_with_padding, 3):
        for (precision, _), norm in zip(PADDED, norms, strict=True):
            assert norm == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 3e-2)
