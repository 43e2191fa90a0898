"""fp16 and bf16 with experts on several ranks: what stays in fp32, and what an overflow does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.config.model import MoeConfig
from ds_seq.config.optim import SgdConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Routing
from ds_seq.training.engine import Engine, StepResult
from tests.distributed import spine
from tests.distributed.harness import run_distributed

SGD_1 = SgdConfig(lr=1.0)
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
SCALE = {"fp16": {"initial_scale_power": 6, "hysteresis": 1}}
EXPERT = "decoder.layers.1.feed_forward.experts.w2"
DENSE = "decoder.layers.0.feed_forward.down.weight"
# what overflows, and where: an expert that one rank alone holds, or a parameter that all hold
SAMPLE = [
    (1, False, EXPERT),
    (2, False, DENSE),
    (2, True, EXPERT),
    (3, False, EXPERT),
    (3, True, DENSE),
]
REST = [(stage, offload, DENSE if name == EXPERT else EXPERT) for stage, offload, name in SAMPLE]


class Skipped(NamedTuple):
    """An update that overflowed on rank 1, and the one after it."""

    applied: list[bool]
    scales: list[float]
    masters: list[dict[str, Tensor]]
    """fp32 weights before, after the first and after the second."""
    model: list[dict[str, Tensor]]
    """The same of this rank's fp16 weights, or of its slice of them."""


def _overflow_on_rank_1(stage: int, offload: bool, name: str) -> Skipped:
    options = {"precision": "fp16", "sections": SCALE, "zero": OFFLOAD if offload else {}}
    engine = spine.make_engine(stage, 2, optimizer=spine.SGD, **options)
    masters, model = [spine.all_weights(engine)], [_half(engine)]
    hook = engine.module.get_parameter(name).register_hook(_infinite_on_rank_1)
    scales, applied = [engine.loss_scale], []
    for update in (0, 1):
        [(_, _, was_applied)] = spine.train(engine, range(update, update + 1))
        hook.remove()
        applied.append(was_applied)
        scales.append(engine.loss_scale)
        masters.append(spine.all_weights(engine))
        model.append(_half(engine))
    return Skipped(applied, scales, masters, model)


def _infinite_on_rank_1(gradient: Tensor) -> Tensor | None:
    return gradient * torch.inf if distributed.rank() == 1 else None


def _half(engine: Engine) -> dict[str, Tensor]:
    named: Any = engine.module.named_parameters()
    own = {n: p.ds_tensor if engine.zero_stage == 3 else p for n, p in named}
    return {name: value.detach().clone() for name, value in own.items()}


Case = tuple[int, bool, str]
"""Stage of ZeRO, whether the optimizer is offloaded, and what overflows."""


def _overflow_in(cases: list[Case]) -> list[Skipped]:
    return [_overflow_on_rank_1(*case) for case in cases]


@pytest.mark.parametrize("cases", [SAMPLE, pytest.param(REST, marks=pytest.mark.slow)])
def test_an_overflow_on_one_rank_skips_the_update_on_all(cases: list[Case]) -> None:
    for ranks in run_distributed(_overflow_in, 2, cases, timeout=120.0):
        for case, found in zip(cases, ranks, strict=True):
            _assert_skipped(case, found)


def _assert_skipped(case: Case, found: Skipped) -> None:
    assert found.applied == [False, True], case
    assert found.scales == [64.0, 32.0, 32.0], case
    for before, after in ((found.masters[0], found.masters[1]), found.model[:2]):
        for name, value in before.items():
            assert torch.equal(after[name], value), (case, name)
    for name, value in found.masters[0].items():
        assert not torch.equal(found.masters[2][name], value), (case, name)


def _overflow_for_ever(stage: int) -> list[tuple[bool, bool, float]]:
    fp16 = {"fp16": {"initial_scale_power": 3, "min_loss_scale": 4, "hysteresis": 1}}
    engine = spine.make_engine(stage, 1, precision="fp16", sections=fp16)
    results: list[StepResult] = []
    step = engine.step
    engine.step = lambda *args: results.append(step(*args)) or results[-1]  # type: ignore
    hook = engine.module.get_parameter(DENSE).register_hook(lambda gradient: gradient * torch.inf)
    spine.train(engine, range(3))
    hook.remove()
    spine.train(engine, range(3, 4))
    updates = [result for result in results if result is not None]
    return [(update.applied, update.failed, update.loss_scale) for update in updates]


def _overflow_for_ever_in_all() -> list[list[tuple[bool, bool, float]]]:
    return [_overflow_for_ever(stage) for stage in range(4)]


def test_a_skip_at_the_lowest_loss_scale_has_failed() -> None:
    [found] = run_distributed(_overflow_for_ever_in_all, 1)
    # the first one lowers the scale; the others find it at its minimum, where it stays
    skipped = [(False, False, 4.0), (False, True, 4.0), (False, True, 4.0)]
    assert found == [[*skipped, (True, False, 4.0)]] * 4


# half of the distance of 1 to the next number: 1 plus half of this is 1 in that precision
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def _sums_of_unequal_gradients() -> dict[tuple[str, int], float]:
    """By precision and stage: a sum of 1 and three small gradients as an update has it."""
    sums = {}
    for precision, rounding in ROUNDING.items():
        for stage in (1, 2, 3):
            fixed = {"fp16": {"loss_scale": 1.0}}
            engine = spine.make_engine(
                stage, 1, precision=precision, sections=fixed, optimizer=SGD_1, decay=0.0
            )
            gradients = iter([1.0, *3 * (rounding / 2,)])

            def fill(gradient: Tensor, values: Iterator[float] = gradients) -> Tensor:
                return torch.full_like(gradient, next(values))

            engine.module.get_parameter(DENSE).register_hook(fill)
            before = spine.all_weights(engine)[DENSE]
            spine.train(engine, range(1))
            sums[precision, stage] = float((before - spine.all_weights(engine)[DENSE]).max())
    return sums


def test_gradients_of_micro_batches_are_added_up_in_fp32() -> None:
    [sums] = run_distributed(_sums_of_unequal_gradients, 1)
    for (precision, stage), found in sums.items():
        # the sum may be rounded once, to be sent to other ranks
        rounding = ROUNDING[precision]
        assert abs(found - (1.0 + 1.5 * rounding)) <= rounding, (precision, stage, found)


class Seen(NamedTuple):
    """What a MoE layer did with its input."""

    x: Tensor
    real: Tensor
    routing: Routing
    gate: Tensor


def _watch_gates(stage: int, precision: str) -> list[Seen]:
    engine = spine.make_engine(stage, 2, precision=precision)
    seen: list[Seen] = []

    def note(gate: Any, inputs: tuple[Any, ...], routing: Routing) -> None:
        seen.append(Seen(inputs[0].detach(), inputs[1], routing, gate.weight.detach().clone()))

    for module in engine.module.modules():
        if isinstance(module, MoeFeedForward):
            module.gate.register_forward_hook(note, prepend=True)  # before ZeRO frees the weight
    engine(spine.batches(0)[distributed.rank()])
    return seen


def _watch_all() -> dict[tuple[int, str], list[Seen]]:
    return {
        (stage, precision): _watch_gates(stage, precision)
        for precision in ("fp16", "bf16")
        for stage in (1, 3)
    }


def test_half_precision_models_route_in_fp32() -> None:
    for ranks in run_distributed(_watch_all, 2):
        for (_, precision), layers in ranks.items():
            assert len(layers) == 2
            for x, real, routing, gate in layers:
                half = torch.float16 if precision == "fp16" else torch.bfloat16
                assert x.dtype == gate.dtype == half
                assert routing.weights.dtype == routing.probabilities.dtype == torch.float32
                assert all(loss.dtype == torch.float32 for loss in routing.losses.values())
                rows = x if real is None else x[real]
                exact = (rows.double() @ gate.double().t()).softmax(-1)
                torch.testing.assert_close(routing.probabilities, exact.float())
                assert torch.equal(routing.experts, exact.topk(2).indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expert_outputs_are_weighted_and_summed_in_fp32(dtype: torch.dtype) -> None:
    moe = MoeConfig(num_experts=4, top_k=2, capacity_factor=None, normalize_weights="none")
    net = build_seq2seq(spine.model_config(moe=moe), spine.VOCAB, 1, 0, seed=5).to(dtype)
    layer = next(module for module in net.modules() if isinstance(module, MoeFeedForward))
    torch.manual_seed(0)
    with torch.no_grad():  # every expert has one answer for all
        layer.experts.w2.zero_()
        layer.experts.b2.normal_()
    x = torch.randn(5, 40, 16, dtype=dtype)
    y = layer(x).y
    routing = layer.gate(x.reshape(200, 16))
    answers = layer.experts.b2[routing.experts].squeeze(2)  # (N, K, D)
    exact = (answers.float() * routing.weights.unsqueeze(-1)).sum(1)
    rounded = (answers * routing.weights.unsqueeze(-1).to(dtype)).sum(1)
    assert torch.equal(y.reshape(200, 16), exact.to(dtype))
    assert not torch.equal(rounded, exact.to(dtype))
