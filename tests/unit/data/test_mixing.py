"""The order of mixed corpora: exact shares, no repetition, the same on any ranks, resumable."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import numpy as np
import pytest

from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.mix_state import mix_position, mix_state
from ds_seq.data.mixing import Corpus, Mix, Position, Stage, Until, epoch_pairs, shares_by_size
from ds_seq.data.permutation import Permutation
from ds_seq.data.stream import BatchStream, Legs

SIZES = {"big": 300, "small": 70, "back": 130}
NATURAL: dict[str, Any] = {"weight": 1.0, "upsample": 1}
WORLDS = (1, 2, 3, 5, 8)
GROUP = 8
SEED = 3


def _corpora(**options: dict[str, Any]) -> list[Corpus]:
    first, corpora = 0, []
    for name, size in SIZES.items():
        corpora.append(
            Corpus(name, first, size, fingerprint=name, **{**NATURAL, **options.get(name, {})})
        )
        first += size
    return corpora


LENGTHS = np.random.default_rng(1).integers(2, 30, (sum(SIZES.values()), 2))
STAGES = (
    Stage("first", {"big": 3, "back": 2}, 120, Until(epochs=2)),
    Stage("second", shares_by_size(_corpora(), 5.0), 200, Until(updates=8)),
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


def test_stopping_anywhere_goes_on_with_the_same_updates() -> None:
    """At the last update of an epoch, the first of the next, within a stage; on other ranks."""
    expected, positions = _updates(1, count=26)
    ends = [number for number, position in enumerate(positions) if position.done == 0]
    assert len(ends) > 3
    stops = sorted({*ends[:4], *(number + 1 for number in ends[:4]), 3, 13, 20})
    for number, stop in enumerate(stops):
        world = WORLDS[number % len(WORLDS)]
        mix = _legs().mix
        assert mix is not None
        state = json.loads(json.dumps(mix_state(mix, positions[stop])))
        position, changed = mix_position(mix, state, positions[stop].epoch)
        position = position._replace(done=positions[stop].done)
        assert not changed and position == positions[stop]
        rest = expected[stop + 1 : stop + 4]
        assert _updates(world, count=len(rest), start=position)[0] == rest


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


@pytest.mark.parametrize("stage", STAGES[:2], ids=["given", "temperature"])
def test_shares_are_exact_at_any_time(stage: Stage) -> None:
    total = sum(stage.shares.values())
    for taken in range(0, 400, 7):
        counts = stage.counts(taken)
        assert sum(counts.values()) == taken
        for name, count in counts.items():
            assert abs(count - taken * stage.shares[name] / total) < len(counts)


@pytest.mark.parametrize("temperature", [1.0, 5.0, math.inf])
def test_shares_follow_the_temperature(temperature: float) -> None:
    shares = shares_by_size(_corpora(small={"upsample": 3, "weight": 2.0}), temperature)
    expected = {
        "big": 300 ** (1 / temperature),
        "small": 2 * 210 ** (1 / temperature),
        "back": 130 ** (1 / temperature),
    }
    for name, share in shares.items():
        part = expected[name] / sum(expected.values())
        assert share / sum(shares.values()) == pytest.approx(part, rel=1e-9)


def test_an_epoch_has_each_pair_as_often_as_it_counts() -> None:
    corpora = _corpora(small={"upsample": 3})
    sampler = TokenBatchSampler(LENGTHS, 90, seed=1, accumulate=1)
    stage = Stage("1", shares_by_size(corpora, 1.0), epoch_pairs(corpora, None))
    mix = Mix(corpora, [stage], 1, sampler)
    for epoch in (1, 2, 7):
        counts = Counter(mix.rows(mix.start, epoch).pairs.tolist())
        small = range(300, 370)
        assert all(counts[pair] == (3 if pair in small else 1) for pair in range(500))


def test_a_stage_ends_after_passes_over_a_corpus() -> None:
    stages = (Stage("a", {"big": 1, "small": 1}, 100, Until(epochs=3, of="small")), STAGES[-1])
    position, seen = _legs(stages=stages).start, Counter[int]()
    legs = _legs(stages=stages)
    while position.plan[-1].stage == 0:
        seen.update(np.concatenate(list(legs.batches(position))).tolist())
        position = legs.after(position)
    assert [seen[pair] for pair in range(300, 370)] == [3] * 70
    assert sum(seen.values()) == 420


def _stream(world: int, rank: int, prefetch: int = 0, corpora: Any = None) -> BatchStream:
    sampler = _legs(rank, world).sampler(_legs(rank, world).start)
    mix = Mix(corpora or _corpora(), STAGES, SEED, sampler)

    def collate(indices: Any) -> Batch:
        return cast(Batch, np.asarray(indices))

    return BatchStream(collate, sampler, num_prefetch=prefetch, mix=mix)


def _take(streams: Sequence[BatchStream], updates: int) -> list[list[int]]:
    """The pairs of the next updates of all ranks."""
    size = -(-GROUP // len(streams))
    return [
        sorted(i for stream in streams for b in islice(stream, size) for i in cast(Any, b).tolist())
        for _ in range(updates)
    ]


def test_a_metric_ends_a_stage_whatever_was_prefetched() -> None:
    """The switch is in the state, so a resume on other ranks goes on behind it."""
    results = []
    for world, prefetch in ((1, 0), (3, 2)):
        streams = [_stream(world, rank, prefetch) for rank in range(world)]
        taken = _take(streams, 16)
        assert [stream.stage and stream.stage.name for stream in streams] == ["third"] * world
        for stream in streams:
            stream.next_stage()
        state = json.loads(json.dumps(streams[0].state_dict()))
        taken += _take(streams, 3)
        resumed = [_stream(2, rank) for rank in range(2)]
        for stream in resumed:
            stream.load_state_dict(state)
        assert resumed[0].stage is not None and resumed[0].stage.name == "last"
        assert _take(resumed, 3) == taken[16:]
        results.append(taken)
        for stream in streams:
            stream.close()
    assert results[0] == results[1]


def test_a_corpus_that_has_changed_begins_a_new_epoch(caplog: pytest.LogCaptureFixture) -> None:
    """Other corpora are walked on; the one that has changed is begun again."""
    stream = _stream(1, 0)
    _take([stream], 9)
    state = stream.state_dict()
    changed = [
        replace(corpus, fingerprint="new") if corpus.name == "back" else corpus
        for corpus in _corpora()
    ]
    other = _stream(1, 0, corpora=changed)
    other.load_state_dict(state)
    assert "corpus back has changed" in caplog.text
    assert other.epoch == state["epoch"] + 1
    after = other.state_dict()
    assert after["offset"] == 0
    walked = dict(zip(SIZES, after["mix"]["segments"][0]["walked"], strict=True))
    assert walked["back"] == 0
    for name in ("big", "small"):
        assert walked[name] == state["mix"]["corpora"][name]["walked"] > 0
