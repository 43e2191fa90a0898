"""Translation by two ranks: same answer as by one, and no rank waits for a forward in vain."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ds_seq import distributed
from ds_seq.generation.beam_search import BeamSearch
from ds_seq.generation.translate import ALONE, BatchLimits, Share, Translations, translate
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.engine import connect_expert_parallel
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.unit.generation.table_model import TableCache, TableModel, WordVocab

SEARCH = BeamSearch(beam=2, max_len_a=2, max_len_b=3)
LIMITS = BatchLimits(max_tokens=30)  # a few batches, not the same number on both ranks
CPU = torch.device("cpu")
TIMEOUT = 60.0


def lines(count: int) -> list[str]:
    """Sentences of very unequal length, and an empty one."""
    made = [" ".join(f"w{4 + (i * n) % 15}" for n in range(1 + i * i % 23)) for i in range(count)]
    return made if count < 3 else ["", *made[1:]]


class CollectiveModel(TableModel):
    """Every forward waits for all ranks, as with expert parallelism; all must do the same one."""

    def encode(self, src: Tensor) -> Tensor:
        self.meet(1.0)
        return super().encode(src)

    def decode_step(self, tokens: Tensor, cache: TableCache) -> Tensor:
        self.meet(2.0)
        return super().decode_step(tokens, cache)

    def meet(self, kind: float) -> None:
        total = torch.tensor([kind])
        dist.all_reduce(total)
        assert total.item() == kind * dist.get_world_size(), "ranks are in different forwards"


def share(collective: bool) -> Share:
    any_rank = distributed.any_rank if collective else None
    return Share(distributed.rank(), distributed.world_size(), any_rank)


def translate_table(num_lines: int, collective: bool) -> Translations | None:
    model = CollectiveModel(19) if collective else TableModel(19)
    return translate(model, WordVocab(19), lines(num_lines), SEARCH, LIMITS, CPU, share(collective))


@pytest.mark.parametrize("collective", [False, True])
@pytest.mark.parametrize("num_lines", [0, 1, 2, 9])
def test_two_ranks_translate_as_one(num_lines: int, collective: bool) -> None:
    alone = translate(TableModel(19), WordVocab(19), lines(num_lines), SEARCH, LIMITS, CPU, ALONE)
    found = run_distributed(translate_table, 2, num_lines, collective, timeout=TIMEOUT)
    assert found == [alone, None]
    assert alone is not None
    assert len(alone.lines) == num_lines


def translate_moe(expert_parallel: int) -> Translations | None:
    rank = distributed.rank() % expert_parallel
    model = build_seq2seq(spine.model_config(), 19, expert_parallel, rank, seed=5).eval()
    connect_expert_parallel(model, expert_parallel)
    return translate(
        model, WordVocab(19), lines(7), SEARCH, LIMITS, CPU, share(expert_parallel > 1)
    )


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_experts_on_two_ranks_translate_as_on_one(expert_parallel: int) -> None:
    model = build_seq2seq(spine.model_config(), 19, seed=5).eval()
    alone = translate(model, WordVocab(19), lines(7), SEARCH, LIMITS, CPU)
    assert run_distributed(translate_moe, 2, expert_parallel, timeout=TIMEOUT) == [alone, None]


def translate_with_spread_weights() -> Translations | None:
    engine = spine.make_engine(3, 1)
    assert engine.forward_is_collective
    module = engine.module.eval()
    return translate(module, WordVocab(19), lines(5), SEARCH, LIMITS, CPU, share(True))


def test_zero_3_translates_as_one_process() -> None:
    model = build_seq2seq(spine.model_config(), spine.VOCAB, seed=5).eval()
    alone = translate(model, WordVocab(19), lines(5), SEARCH, LIMITS, CPU)
    found = run_distributed(translate_with_spread_weights, 2, timeout=TIMEOUT)
    assert found == [alone, None]
