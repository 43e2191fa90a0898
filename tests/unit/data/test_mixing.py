"""The order of mixed corpora: exact shares, no repetition, the same on any ranks, resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest

from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.legs import Legs, Position
from ds_seq.data.mix_state import mix_position, mix_state
from ds_seq.data.mixing import Corpus, Mix, Stage, Until, shares_by_size
from ds_seq.data.permutation import Permutation

SIZES = {"big": 300, "small": 70, "back": 130}
NATURAL: dict[str, Any] = {"weight": 1.0, "upsample": 1}
WORLDS = (1, 2, 3, 5, 8)
GROUP = 8
SEED = 3


def _corpora(**options: dict[str, Any]) -> list[Corpus]:
    first, corpora = 0, []
    for name, size in SIZES.items():
        corpora.append(Corpus(name, first, size, fingerprint=name, **{**NATURAL, **options.get(name, {})}))
        first += size
    return corpora


LENGTHS = np.random.default_rng(1).integers(2, 30, (sum(SIZES.values()), 2))
STAGES = (
    Stage("first", {"big": 3, "back": 2}, 120, Until(epochs=2)),
    Stage("second", shares_by_size(_corpora(), 5.0), 200, Until(updates=5)),
    Stage("third", {"small": 1, "big": 1}, 90, Until(metric="bleu")),
    Stage("last", shares_by_size(_corpora(), 1.0), 500),
)


def _legs(
    rank: int = 0, world: int = 1, stages: Sequence[Stage] = STAGES, group: int | None = GROUP
) -> Legs:
    accumulate = 1 if group is None else -(-group // world)
    sampler = TokenBatchSampler(
        LENGTHS, 90, seed=SEED, rank=rank, world_size=world, accumulate=accumulate, group=group
    )
    return Legs(sampler, Mix(_corpora(), stages, SEED, sampler))


def _updates(
    world: int, stages: Sequence[Stage] = STAGES, count: int = 40, start: Position | None = None
) -> tuple[list[list[int]], list[Position]]:
    """The pairs of each update over all ranks, and the position after each of them."""
    legs = [_legs(rank, world, stages) for rank in range(world)]
    position, updates, positions = start or legs[0].start, [], []
    while len(updates) < count:
        of_ranks = [list(each.batches(position)) for each in legs]
        size = legs[0].sampler(position).accumulate
        for number in range(legs[0].num_updates(position)):
            part = slice(number * size, (number + 1) * size)
            batches = [batch for batches in of_ranks for batch in batches[part]]
            updates.append(sorted(np.concatenate(batches).tolist()))
            positions.append(legs[0].along(position, number + 1))
        position = legs[0].after(position)
    return updates[:count], positions[:count]


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1024, 1025, 5000])
def test_a_permutation_has_each_number_once(size: int) -> None:
    numbers = np.arange(size)
    order = Permutation(size, (1, 2))(numbers)
    assert sorted(order.tolist()) == numbers.tolist()
    some = numbers[:: max(1, size // 7)]
    assert np.array_equal(Permutation(size, (1, 2))(some), order[some])
    if size > 3:
        assert not np.array_equal(Permutation(size, (1, 3))(numbers), order)


def test_all_permutations_are_about_as_frequent() -> None:
    found = Counter(tuple(Permutation(4, (s, 0))(np.arange(4)).tolist()) for s in range(6000))
    assert len(found) == 24
    assert sum((count - 250) ** 2 / 250 for count in found.values()) < 45  # chi square, p = 0.4 %


@pytest.mark.parametrize("world", WORLDS)
def test_updates_are_the_same_on_any_number_of_ranks(world: int) -> None:
    expected, positions = _updates(1)
    assert {position.plan[-1].stage for position in positions} == {0, 1, 2}
    assert _updates(world) == (expected, positions)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_stopping_anywhere_goes_on_with_the_same_updates(world: int) -> None:
    expected, positions = _updates(1)
    ends = [n for n, p in enumerate(positions) if p.done == 0]  # last updates of their epochs
    assert len(ends) > 5
    for stop in sorted({*ends[:6], *(n + 1 for n in ends[:6]), 3, 13, 20}):
        legs = _legs(0, world)
        assert legs.mix is not None
        state = json.loads(json.dumps(mix_state(legs.mix, positions[stop])))
        position, changed = mix_position(legs.mix, state, positions[stop].epoch)
        position = position._replace(done=positions[stop].done)
        assert not changed and position == positions[stop]
        count = len(expected) - stop - 1
        assert _updates(world, count=count, start=position)[0] == expected[stop + 1 :]


def test_no_pair_comes_again_before_all_others_of_its_corpus() -> None:
    """Through epochs, stages that end after them, after updates and by a metric, and a resume."""
    legs = _legs()
    position, seen = legs.start, []
    for number in range(14):
        updates = legs.num_updates(position)
        if position.plan[-1].stage == 2 and number > 8:
            updates = min(updates, 2)
        pairs = np.concatenate(list(islice(legs.batches(position), updates * GROUP)))
        seen += pairs.tolist()
        position = legs.along(position, updates)
        if legs.mix is not None and legs.mix.stage(position.plan).until.metric and number > 8:
            position = legs.next_stage(position)
    assert position.plan[-1].stage == 3
    assert [segment.cut is None for segment in position.plan] == [True, True, False, False]
    # whole passes end where the walk says, so count pairs at the end of the epoch
    assert legs.mix is not None
    _, walked = legs.mix.after_epoch(position.plan, position.epoch - 1)
    for corpus, taken in zip(legs.mix.corpora.values(), walked, strict=True):
        counts = Counter(pair for pair in seen if corpus.first <= pair < corpus.first + corpus.size)
        times = [counts[pair] for pair in range(corpus.first, corpus.first + corpus.size)]
        assert max(times) - min(times) <= 1, corpus.name
        assert sum(times) == taken
