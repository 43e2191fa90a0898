"""Communication of ranks in a forward and a backward pass, counted in torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ds_seq import distributed
from ds_seq.config.model import MoeConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.engine import connect_expert_parallel
from tests.distributed import spine
from tests.distributed.harness import run_distributed

NUM_LAYERS = 2  # with experts, in spine's model


def _collectives(function: Callable[[], object]) -> Counter[str]:
    """Names of the collectives that ``function`` calls, from any caller, and their counts."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    events = {event.key: event.count for event in profiler.key_averages()}
    return Counter({n.removeprefix("c10d::"): k for n, k in events.items() if "c10d::" in n})


def _count(recompute: bool, load_balance: str) -> dict[str, Counter[str]]:
    moe = MoeConfig(num_experts=4, top_k=2, load_balance=load_balance)  # type: ignore[arg-type]
    model = spine.model_config(activation_checkpointing=recompute, moe=moe)
    net = build_seq2seq(model, spine.VOCAB, 2, distributed.rank(), seed=5)
    connect_expert_parallel(net, 2)
    batch = spine.batches(0)[distributed.rank()]
    losses: list[torch.Tensor] = []

    def forward() -> None:
        output = net(batch.inputs)
        losses.append(output.logits.square().mean() + sum(output.router_losses.values()))

    found = {"training": _collectives(forward)}
    found["backward"] = _collectives(losses[0].backward)
    net.eval()
    with torch.no_grad():
        found["evaluation"] = _collectives(forward)
    return found


def _count_nothing() -> Counter[str]:
    net = build_seq2seq(spine.model_config(), spine.VOCAB, 1, 0, seed=5)
    batch = spine.batches(0)[distributed.rank()]
    return _collectives(lambda: net(batch.inputs).logits.sum().backward())


CASES = [(recompute, balance) for recompute in (False, True) for balance in ("rank", "global")]


def _count_all() -> tuple[dict[tuple[bool, str], dict[str, Counter[str]]], Counter[str]]:
    return {case: _count(*case) for case in CASES}, _count_nothing()


Counted = list[tuple[dict[tuple[bool, str], dict[str, Counter[str]]], Counter[str]]]


@pytest.fixture(scope="module")
def counted() -> Counted:
    """By rank: of each case, and of experts that are all here."""
    return run_distributed(_count_all, 2)


@pytest.mark.parametrize(("recompute", "load_balance"), CASES)
def test_a_moe_layer_exchanges_counts_and_rows_and_nothing_else(
    recompute: bool, load_balance: str, counted: Counted
) -> None:
    exchanges = {"alltoall_base_": 3 * NUM_LAYERS}
    # a joint load balance is requested, and costs one more
    balance = {"allreduce_": NUM_LAYERS} if load_balance == "global" else {}
    backward = {"alltoall_base_": 2 * NUM_LAYERS}
    if recompute:  # a forward in the backward
        backward = {"alltoall_base_": 5 * NUM_LAYERS, **balance}
    for cases, _ in counted:
        found = cases[recompute, load_balance]
        assert found["training"] == {**exchanges, **balance}
        assert found["evaluation"] == exchanges
        assert found["backward"] == backward


def test_experts_that_are_all_here_need_no_exchange(counted: Counted) -> None:
    assert [nothing for _, nothing in counted] == [Counter(), Counter()]
