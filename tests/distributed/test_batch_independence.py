"""Evaluation is dropless: a sentence's answer is its own, whatever the batch and the layout.

For every router and branch: the logits of a sentence alone, in a batch with others, and with its
experts on two ranks of which the other one works on other sentences.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.model import MoeConfig
from ds_seq.generation.translate import translate
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.moe.sigmoid import SigmoidRouter
from tests.batches import inputs_of
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.distributed.test_generation import CPU, share
from tests.unit.search.table_model import SYMBOLS, words
from tests.values import batch_limits, beam_search

SEED = 1
MORE_SEEDS = (2, 3)
"""Tried by slow tests."""
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"capacity_factor": 0.5, "min_capacity": 0},  # of training only
    "one_expert": {"top_k": 1},
    "cosine": {"router": "cosine"},
    "sigmoid": {"router": "sigmoid", "bias_rate": 0.1},
    "expert_choice": {"router": "expert_choice", "placement": "encoder"},
    "language": {"router": "language"},
    "sampled": {"second_expert": "sampled", "noise": "gumbel"},
    "residual": {"residual": True},
    "shared": {"shared_experts": 1},
    "conditional": {"conditional_budget": 0.5, "conditional_dropout": 0.3},
    "masked": {"output_masking": 0.3},
}

ROUTERS = ("softmax", "cosine", "sigmoid", "expert_choice", "language")


def _model(variant: str, seed: int, expert_parallel: int, rank: int) -> nn.Module:
    moe = MoeConfig(**{"num_experts": 4, "top_k": 2, **VARIANTS[variant]})  # type: ignore[arg-type]
    net = build_seq2seq(spine.model_config(moe=moe), spine.VOCAB, expert_parallel, rank, seed=seed)
    for module in net.modules():
        if isinstance(module, SigmoidRouter):
            module.bias_steps += torch.tensor([3, -2, 0, -1])
    return net.eval()


def _pairs(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Sources and targets of very unequal length."""
    draw = torch.Generator().manual_seed(seed)
    return [
        tuple(
            torch.randint(4, spine.VOCAB, (n,), generator=draw) for n in (length, 1 + length // 2)
        )
        for length in (1, 13, 4, 7, 2, 9)
    ]  # type: ignore[return-value]


def _together(net: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Logits (T, V) of each pair, computed in one padded batch."""
    sides = zip(*pairs, strict=True)
    src, tgt = (
        nn.utils.rnn.pad_sequence(list(s), batch_first=True, padding_value=1) for s in sides
    )
    with torch.no_grad():
        logits = net(inputs_of(src, tgt)).logits
    return list(logits.split([len(target) for _, target in pairs]))


def _logits(variant: str, seed: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each sentence: alone, in a batch, and in a batch with experts on two ranks."""
    rank, pairs = distributed.rank(), _pairs(seed)
    whole, spread = _model(variant, seed, 1, 0), _model(variant, seed, 2, rank)
    connect_expert_parallel(spread, 2)
    alone = [_together(whole, [pair])[0] for pair in pairs]
    order = [3, 0, 5, 2, 4, 1]
    together = _together(whole, [pairs[i] for i in order])
    first, second = order[:4], order[4:]
    mine = first if rank == 0 else second
    shared = dict(zip(mine, _together(spread, [pairs[i] for i in mine]), strict=True))
    everyone = distributed.broadcast_object(distributed.gather_objects(shared))
    merged = {key: value for part in everyone for key, value in part.items()}
    numbers = range(len(pairs))
    return alone, [together[order.index(i)] for i in numbers], [merged[i] for i in numbers]


Logits = dict[str, tuple[list[Tensor], list[Tensor], list[Tensor]]]
"""By variant."""


def _all_logits(seed: int) -> Logits:
    return {variant: _logits(variant, seed) for variant in VARIANTS}


@pytest.fixture(scope="module")
def logits() -> Logits:
    """Of the models of one seed."""
    found: Logits = run_distributed(_all_logits, 2, SEED)[0]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_sentence_depend_on_nothing_else(variant: str, logits: Logits) -> None:
    _assert_own(variant, logits)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_logits_of_other_models_depend_on_nothing_else(seed: int) -> None:
    logits: Logits = run_distributed(_all_logits, 2, seed)[0]
    for variant in VARIANTS:
        _assert_own(variant, logits)


def _assert_own(variant: str, logits: Logits) -> None:
    alone, together, spread = logits[variant]
    assert len(alone) == 6
    torch.testing.assert_close(
        together, alone, rtol=1e-5, atol=1e-5, msg=lambda text: f"{variant}: {text}"
    )
    torch.testing.assert_close(
        spread, alone, rtol=1e-5, atol=1e-5, msg=lambda text: f"{variant}: {text}"
    )


SEARCH = beam_search(SYMBOLS, beam=2, max_len_a=1, max_len_b=3)
LINES = [" ".join(f"w{4 + (i * n * n) % 15}" for n in range(1 + i * i % 23)) for i in range(1, 6)]


def _translations(variant: str, seed: int) -> tuple[list[str], list[str], list[str] | None]:
    whole, spread = (_model(variant, seed, ranks, distributed.rank() % ranks) for ranks in (1, 2))
    connect_expert_parallel(spread, 2)
    vocab, few, many = words(spine.VOCAB), batch_limits(max_tokens=30), batch_limits()
    alone, together = [], translate(whole, vocab, LINES, SEARCH, many, CPU)
    for line in LINES:
        single = translate(whole, vocab, [line], SEARCH, many, CPU)
        assert single is not None
        alone += single.lines
    shared = translate(spread, vocab, LINES, SEARCH, few, CPU, share(True))
    assert together is not None
    return alone, together.lines, None if shared is None else shared.lines


def _all_translations(seed: int) -> list[tuple[list[str], list[str], list[str] | None]]:
    return [_translations(variant, seed) for variant in ROUTERS]


@pytest.mark.parametrize("seed", [SEED, pytest.param(2, marks=pytest.mark.slow)])
def test_translations_of_a_sentence_depend_on_nothing_else(seed: int) -> None:
    for alone, together, shared in run_distributed(_all_translations, 2, seed)[0]:
        assert len(set(alone)) > 1
        assert alone == together == shared
