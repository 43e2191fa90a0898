"""Copies of a pair in an epoch: far apart, in the same shares everywhere, the same on any ranks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.mix_state import mix_position, mix_state
from ds_seq.data.mixing import ORDER, Corpus, Mix, Position, Segment, Stage, Until, epoch_pairs
from ds_seq.data.sections import deal, most_copies, with_copies
from ds_seq.data.stream import Legs

CORPORA = [
    Corpus("large", 0, 3000, 1.0, 1, "a"),
    Corpus("small", 3000, 400, 1.0, 1, "b"),
    Corpus("tiny", 3400, 100, 1.0, 1, "c"),
]
LENGTHS = np.random.default_rng(1).integers(2, 12, (3500, 2))
EVEN = Stage("even", {"large": 30, "small": 12, "tiny": 5}, epoch_pairs(CORPORA, 4700))
CUT = Stage("cut", {"large": 2, "small": 1, "tiny": 1}, 4000, Until(updates=60))


def _legs(rank: int = 0, world: int = 1, stages: tuple[Stage, ...] = (EVEN,)) -> Legs:
    sampler = TokenBatchSampler(
        LENGTHS, 60, seed=3, rank=rank, world_size=world, accumulate=-(-8 // world), group=8
    )
    return Legs(sampler, Mix(CORPORA, stages, 3, sampler))


def _copies(pairs: NDArray[np.integer]) -> int:
    return max(Counter(pairs.tolist()).values())


@pytest.mark.parametrize("num_sections", [1, 2, 3, 5])
def test_cards_are_dealt_evenly_and_copies_to_different_sections(num_sections: int) -> None:
    parts = [np.repeat(np.arange(50), 3), np.arange(50, 83), np.repeat(np.arange(83, 90), 2)]
    pairs, sections = deal([part.astype(np.uint32) for part in parts], num_sections, 7)
    assert Counter(pairs.tolist()) == Counter(np.concatenate(parts).tolist())
    assert len(sections) == num_sections + 1
    for part in parts:
        held = [np.isin(pairs[a:b], part) for a, b in pairwise(sections.tolist())]
        assert max(map(np.sum, held)) - min(map(np.sum, held)) <= 1
    for start, stop in pairwise(sections.tolist()):
        assert _copies(pairs[start:stop]) == -(-3 // num_sections)


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_copies_are_counted_and_told_apart(copies: int) -> None:
    numbers = np.concatenate([np.arange(20), *[np.asarray([4, 9])] * (copies - 1)])
    pairs = np.random.default_rng(0).permutation(numbers).astype(np.uint32)
    for bound in (copies, copies + 1, 100):
        assert most_copies(pairs, bound) == copies
    if copies == 1:
        return
    told = with_copies(pairs, 1 << 31)
    assert len(set(told.tolist())) == len(numbers)
    assert sorted((told % (1 << 31)).tolist()) == sorted(numbers.tolist())
    assert {n >> 31 for n in told.tolist() if n % (1 << 31) == 4} == set(range(copies))
    assert with_copies(np.zeros(0, np.uint32), 5).tolist() == []


def test_no_section_has_a_pair_twice_and_all_have_the_same_shares() -> None:
    """Over epochs in which 3 to 7 passes through the small corpora begin and end anywhere."""
    legs = _legs()
    assert legs.mix is not None
    for epoch in (1, 2, 3):
        pairs, sections = legs.mix.rows(legs.mix.start, epoch)
        assert len(sections) - 1 == _copies(pairs) >= 5
        for start, stop in pairwise(sections.tolist()):
            section = pairs[start:stop]
            assert _copies(section) == 1
            for corpus in CORPORA:
                size = np.sum((corpus.first <= section) & (section < corpus.first + corpus.size))
                share = EVEN.shares[corpus.name] / sum(EVEN.shares.values())
                assert abs(size - share * len(section)) <= 2
        batches = list(legs.batches(Position(epoch, plan=legs.mix.start)))
        assert sorted(np.concatenate(batches).tolist()) == sorted(pairs.tolist())
        repeats = [
            1 - len(set(near.tolist())) / len(near)
            for near in (np.concatenate(batches[n : n + 40]) for n in range(0, len(batches), 20))
        ]
        assert np.mean(repeats) < 0.01  # sorted as a whole, it is 18%


def _updates(world: int, stages: tuple[Stage, ...], start: Position) -> Iterator[tuple[int, ...]]:
    """The pairs of the updates of two legs from a position on."""
    legs, position = [_legs(rank, world, stages) for rank in range(world)], start
    for _ in range(2):
        of_ranks = [list(each.batches(position)) for each in legs]
        size = legs[0].sampler(position).accumulate
        for number in range(legs[0].num_updates(position)):
            part = slice(number * size, (number + 1) * size)
            pairs = np.concatenate([b for batches in of_ranks for b in batches[part]])
            yield tuple(sorted(pairs.tolist()))
        position = legs[0].after(position)


@pytest.mark.parametrize("world", [2, 3, 5, 8])
def test_sections_are_the_same_on_any_number_of_ranks(world: int) -> None:
    stages = (CUT, EVEN)
    start = _legs(stages=stages).start
    assert list(_updates(world, stages, start)) == list(_updates(1, stages, start))


def test_a_stage_that_ends_within_a_section_leaves_what_no_batch_had() -> None:
    legs = _legs(stages=(CUT, EVEN))
    position = legs.after(legs.start)
    assert legs.mix is not None and position.plan[-1].cut == 60 * 8
    shown = np.concatenate(list(legs.batches(legs.start)))
    whole = legs.mix.rows(legs.start.plan, 1).pairs
    rest = Counter(whole.tolist()) - Counter(shown.tolist())
    assert 0 < rest.total() == len(whole) - len(shown)
    following = Counter(legs.mix.rows(position.plan, 2).pairs.tolist())
    tiny = [pair for pair in rest if pair >= CORPORA[2].first]
    assert len(tiny) > 10 and all(following[pair] >= rest[pair] for pair in tiny)


def test_a_checkpoint_of_the_order_without_sections_keeps_it_to_the_end_of_the_epoch() -> None:
    legs = _legs()
    assert legs.mix is not None
    state = mix_state(legs.mix, Position(1, plan=legs.mix.start))
    earlier = copy.deepcopy(state)
    del earlier["segments"][0]["order"]  # as it was written before there were sections
    position, changed = mix_position(legs.mix, earlier, 1)
    assert not changed and position.plan == (Segment(0, 1, 0, (0, 0, 0), order=1),)
    pairs, sections = legs.mix.rows(position.plan, 1)
    assert sections.tolist() == [0, len(pairs)]
    assert sorted(pairs.tolist()) == sorted(legs.mix.rows(legs.mix.start, 1).pairs.tolist())

    following = legs.after(position._replace(stage_updates=5))
    assert following.plan[-1].order == ORDER and following.plan[-1].epoch == 2
    assert following.stage_updates == 5 + legs.num_updates(position)
    assert len(legs.mix.rows(following.plan, 2).sections) > 2
    for epoch in (2, 3):
        there = legs.mix.rows(following.plan, epoch).pairs
        assert sorted(there.tolist()) == sorted(legs.mix.rows(legs.mix.start, epoch).pairs.tolist())
    assert legs.after(following).plan == following.plan
    again, changed = mix_position(legs.mix, mix_state(legs.mix, following), 2)
    assert not changed and again.plan == following.plan
