"""Translation by many ranks: same answer as by one, and no rank waits for a forward in vain.

The processes start once and go through all cases, one after the other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ds_seq import distributed
from ds_seq.generation.translate import ALONE, Share, Translations, translate
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.search.beam_search import BeamSearch
from tests.distributed import spine
from tests.distributed.harness import run_distributed
from tests.unit.search.table_model import SYMBOLS, TableCache, TableModel, words
from tests.values import batch_limits, beam_search, draws

SEARCH = beam_search(SYMBOLS, beam=2, max_len_a=1, max_len_b=3)
DRAW = beam_search(SYMBOLS, max_len_a=1, max_len_b=3, sampling=draws(top_k=5))
LIMITS = batch_limits(max_tokens=30)  # a few batches, not the same number on both ranks
CPU = torch.device("cpu")
COUNTS = (0, 1, 2, 3, 9)  # with 4 ranks most have nothing of the first ones


def lines(count: int) -> list[str]:
    """Sentences of very unequal length, and an empty one."""
    made = [" ".join(f"w{4 + (i * n) % 15}" for n in range(1 + i * i % 23)) for i in range(count)]
    return made if count < 3 else ["", *made[1:]]


class CollectiveModel(TableModel):
    """Every forward waits for all ranks, as with expert parallelism; all must do the same one."""

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        self.meet(1.0)
        return super().encode(source, source_mask)

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


def translate_table(
    search: BeamSearch, num_lines: int, collective: bool, part: Share
) -> Translations | None:
    model = CollectiveModel(19) if collective else TableModel(19)
    return translate(model, words(19), lines(num_lines), search, LIMITS, CPU, part)


def translate_moe(search: BeamSearch, expert_parallel: int, part: Share) -> Translations | None:
    """A model with experts on `expert_parallel` ranks."""
    rank = distributed.rank() % expert_parallel
    model = build_seq2seq(spine.model_config(), 19, expert_parallel, rank, seed=5).eval()
    connect_expert_parallel(model, expert_parallel)
    return translate(model, words(19), lines(7), search, LIMITS, CPU, part)


Answers = dict[str, Translations | None]


def translate_all(spread: tuple[int, ...]) -> Answers:
    """Results of this rank in each case, with experts distributed over this many ranks."""
    answers: Answers = {}
    for name, search in {"search": SEARCH, "draw": DRAW}.items():
        for count in COUNTS if search is SEARCH else COUNTS[-1:]:
            for collective in (False, True):
                key = f"{name} {count} lines"
                found = translate_table(search, count, collective, share(collective))
                answers[f"{key}, {'collective' if collective else 'alone'}"] = found
        for ranks in spread:
            answers[f"{name} experts on {ranks}"] = translate_moe(search, ranks, share(ranks > 1))
    return answers


def expected(key: str) -> Translations | None:
    """The answer of one process."""
    search = SEARCH if key.startswith("search") else DRAW
    if "experts" in key:
        return translate_moe(search, 1, ALONE)
    return translate_table(search, int(key.split()[1]), False, ALONE)


def check(answers: list[Answers], num_cases: int) -> None:
    first, *others = answers
    assert len(first) == num_cases
    for key, found in first.items():
        alone = expected(key)
        assert found == alone, key
        assert alone is not None and (len(alone.lines) > 1 or "lines" in key)
    for other in others:
        assert other == dict.fromkeys(first)


def test_two_ranks_translate_as_one() -> None:
    check(run_distributed(translate_all, 2, (1, 2)), 16)


def test_four_ranks_translate_as_one() -> None:
    check(run_distributed(translate_all, 4, (1, 2, 4)), 18)


def translate_with_spread_weights() -> Translations | None:
    engine = spine.make_engine(3, 1)
    assert engine.forward_is_collective
    module = engine.module.eval()
    return translate(module, words(19), lines(5), SEARCH, LIMITS, CPU, share(True))


def test_zero_3_translates_as_one_process() -> None:
    model = build_seq2seq(spine.model_config(), spine.VOCAB, 1, 0, seed=5).eval()
    alone = translate(model, words(19), lines(5), SEARCH, LIMITS, CPU)
    found = run_distributed(translate_with_spread_weights, 2)
    assert found == [alone, None]
