"""`load_balance: global` balances over the joint batch of all ranks: here against one process
that knows the counts of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ds_seq.config.model import MoeConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.moe import router
from tests.distributed import spine
from tests.distributed.harness import run_distributed

WORLD = 2
MOE = MoeConfig(num_experts=4, top_k=2, capacity_factor=None, every=1, load_balance="global")
MODEL = spine.small_model(moe=MOE)
CASES = ((1, 0), (2, 1), (2, 3))  # expert_parallel, stage
OPTIONS = {"optimizer": spine.SGD, "model": MODEL}


def _run_all() -> list[spine.Result]:
    return [spine.run(stage, spread, 1, OPTIONS) for spread, stage in CASES]


def _gradients_of_one_process(joint: bool) -> dict[str, Tensor]:
    """Of the first update: micro-batches in groups, one of each rank.

    Args:
        joint: whether the counts that ranks would add up are really added up.
    """
    net = build_seq2seq(MODEL, spine.VOCAB, 1, 0, seed=5).train()
    criterion, everyone = spine.make_criterion(), spine.batches(0)
    tokens = sum(batch.num_tokens for batch in everyone)
    counts: list[Tensor] = []  # of each MoE layer in turn
    answers: Iterator[Tensor] = iter(())

    def note(values: Tensor) -> Tensor:
        counts.append(values)
        return values

    router.world_size = lambda: WORLD
    for start in range(0, len(everyone), WORLD):
        group = everyone[start : start + WORLD]
        router.sum_over_ranks = note
        counts.clear()
        for batch in group:
            net(batch.inputs)
        layers = len(counts) // WORLD
        summed = [sum(counts[layer::layers], torch.zeros(4)) for layer in range(layers)]
        for index, batch in enumerate(group):
            own = counts[index * layers : (index + 1) * layers]
            answers = iter(summed if joint else own)
            router.sum_over_ranks = lambda values, answers=answers: next(answers)
            output = net(batch.inputs)
            (criterion(output, batch).total / tokens).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_joint_batch() -> None:
    joint, apart = (
        run_distributed(_gradients_of_one_process, 1, both)[0] for both in (True, False)
    )
    worst = max((joint[name] - apart[name]).abs().max() for name in joint)
    assert worst > 1e-3
    for found in run_distributed(_run_all, WORLD):
        for case, result in zip(CASES, found, strict=True):
            for name, value in joint.items():
                torch.testing.assert_close(
                    result.gradients[name], value, rtol=1e-5, atol=1e-5, msg=f"{case} {name}"
                )
