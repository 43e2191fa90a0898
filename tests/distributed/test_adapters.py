"""One adapter is trained in every layout, all else stays bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.adapter import AdapterChoice
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.training.state import FullState
from ds_seq.training.trainable import FrozenCheck, freeze
from tests.distributed import spine
from tests.distributed.harness import run_distributed

UPDATES = 2
ALIGNMENT = 16
"""Most numbers by which ZeRO pads a slice."""
DECAY = 0.3
MODEL = spine.small_model(adapters={"ids": ["a", "b", "c"], "gate": True})
TAGS = {token: ("a", "b")[token % 2] for token in range(4, spine.VOCAB - 3)}
"""The first token of most sentences chooses an adapter; some ranks meet only one, or none."""
CASES = [(0, 1), (1, 2), (2, 1), (3, 1), (3, 2)]  # ZeRO stage, expert parallelism


def _prepare(model: Seq2SeqTransformer) -> None:
    model.adapters = AdapterChoice(None, TAGS)
    freeze(model, [], ["adapters.a"])


def _run(stage: int, expert_parallel: int) -> tuple[dict[str, Tensor], list[str], int]:
    """Train; returns what was trained, its names, and how many numbers the optimizer holds."""
    engine = spine.make_engine(
        stage,
        expert_parallel,
        model=MODEL,
        prepare=_prepare,
        decay=DECAY,
        optimizer=spine.SGD.model_copy(update={"momentum": 0.9}),
    )
    check = FrozenCheck(engine.module)
    spine.train(engine, range(UPDATES))
    check.verify()
    trained = [name for name, _ in FullState(engine.deepspeed).parameters()]
    states = engine.deepspeed.basic_optimizer.state.values()
    held = sum(value.numel() for state in states for value in state.values())
    return spine.all_weights(engine), trained, held


def _run_all(cases: list[tuple[int, int]]) -> list[tuple[dict[str, Tensor], list[str], int]]:
    return [_run(*case) for case in cases]


def _emulate() -> dict[str, Tensor]:
    """The same in plain torch."""
    net = build_seq2seq(MODEL, spine.VOCAB, 1, 0, seed=5).train()
    _prepare(net)
    config = spine.SGD.model_copy(update={"momentum": 0.9})
    optimizer = build_optimizer(config, parameter_groups(net, DECAY))
    criterion = spine.make_criterion()
    for update in range(UPDATES):
        everyone = spine.batches(update)
        tokens = sum(batch.num_tokens for batch in everyone)
        optimizer.zero_grad()
        for batch in everyone:
            (criterion(net(batch.inputs), batch).total / tokens).backward()
        optimizer.step()
    return {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}


def test_one_adapter_of_a_mixed_batch_is_trained_in_every_layout() -> None:
    expected: dict[str, Any] = run_distributed(_emulate, 1)[0]
    assert len(expected) == 2 * 8, "an adapter in each of two layers"
    initial = dict(build_seq2seq(MODEL, spine.VOCAB, 1, 0, seed=5).named_parameters())
    assert all(not torch.equal(value, initial[name]) for name, value in expected.items())
    size = sum(value.numel() for value in expected.values())
    assert 10 * size < sum(value.numel() for value in initial.values())
    for results in run_distributed(_run_all, 2, CASES, timeout=120.0):
        for case, (weights, trained, held) in zip(CASES, results, strict=True):
            assert weights.keys() == expected.keys() == set(trained), case
            assert held <= size + ALIGNMENT, case
            for name, value in expected.items():
                torch.testing.assert_close(
                    weights[name], value, atol=1e-5, rtol=1e-5, msg=f"{case}: {name}"
                )


def test_an_adapter_that_no_sentence_meets_cannot_be_trained() -> None:
    model = build_seq2seq(MODEL, spine.VOCAB, 1, 0, seed=5)
    model.adapters = AdapterChoice("b")
    with pytest.raises(Exception, match="nothing is trained"):
        freeze(model, [], ["adapters.a"])
