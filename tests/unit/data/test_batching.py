"""Batches: bounds, coverage, balance over ranks, and independence of how ranks are laid out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ds_seq.data.batching import CELL, Selected, TokenBatchSampler
from ds_seq.errors import UserError

LAYOUTS = [(1, 1), (1, 4), (2, 2), (4, 1), (3, 2), (8, 1), (2, 4)]


@pytest.fixture(scope="module")
def lengths() -> NDArray[np.int32]:
    """Lengths (2, 1003) of two sides, as unlike real ones as it gets: long, short, unequal."""
    random = np.random.default_rng(3)
    source = random.geometric(0.08, 1003).clip(1, 80)
    return np.stack([source, (source * random.uniform(0.5, 2, 1003)).clip(1, 99)]).astype(np.int32)


def _sampler(
    lengths: NDArray[np.int32],
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    max_tokens: int = 400,
    max_sentences: int | None = None,
    seed: int = 7,
    shuffle: bool = True,
) -> TokenBatchSampler:
    return TokenBatchSampler(
        lengths.T,
        max_tokens,
        max_sentences,
        seed if shuffle else None,
        rank,
        world,
        accumulate=accumulate,
    )


def _ranks(
    lengths: NDArray[np.int32], world: int, accumulate: int, epoch: int = 1, done: int = 0
) -> list[list[NDArray[np.int64]]]:
    return [_sampler(lengths, rank, world, accumulate).epoch(epoch, done) for rank in range(world)]


def _updates(
    lengths: NDArray[np.int32], world: int, accumulate: int, epoch: int = 1, done: int = 0
) -> list[list[int]]:
    """The sentences of each update over all ranks."""
    ranks = _ranks(lengths, world, accumulate, epoch, done)
    return [
        sorted(np.concatenate([b for rank in ranks for b in rank[i : i + accumulate]]).tolist())
        for i in range(0, len(ranks[0]), accumulate)
    ]


@pytest.mark.parametrize(("world", "accumulate"), LAYOUTS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_pair_once_and_equal_counts(
    lengths: NDArray[np.int32], world: int, accumulate: int, shuffle: bool
) -> None:
    ranks = [
        _sampler(lengths, rank, world, accumulate, shuffle=shuffle).epoch(1)
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) % accumulate == 0
    assert len(ranks[0]) == _sampler(lengths, 0, world, accumulate).num_updates() * accumulate
    everything = np.concatenate([batch for batches in ranks for batch in batches])
    assert sorted(everything.tolist()) == list(range(lengths.shape[1]))


@pytest.mark.parametrize(("max_tokens", "max_sentences"), [(99, None), (400, None), (1500, 5)])
def test_bounds_hold_with_padding(
    lengths: NDArray[np.int32], max_tokens: int, max_sentences: int | None
) -> None:
    sampler = _sampler(lengths, max_tokens=max_tokens, max_sentences=max_sentences)
    for batch in sampler.epoch(1):
        assert len(batch) * lengths[:, batch].max() <= max_tokens
        assert len(batch) <= (max_sentences or len(batch))


def test_batches_are_full(lengths: NDArray[np.int32]) -> None:
    """Not one sentence more would go into a batch, so few batches are far from the bound."""
    fill = [len(batch) * lengths[:, batch].max() / 400 for batch in _sampler(lengths).epoch(1)]
    assert np.mean(fill) > 0.85
    padded = sum(len(b) * lengths[:, b].max(axis=1).sum() for b in _sampler(lengths).epoch(1))
    assert padded < 1.3 * lengths.sum()


def test_order_is_a_function_of_seed_and_epoch(lengths: NDArray[np.int32]) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in _sampler(lengths, seed=seed).epoch(epoch)]

    assert order(7, 2) == order(7, 2)
    assert order(7, 2) != order(7, 3)
    assert order(7, 2) != order(8, 2)
    sampler = _sampler(lengths)
    sampler.epoch(1)
    assert [batch.tolist() for batch in sampler.epoch(2)] == order(7, 2), "it keeps no state"


def test_unshuffled_order_is_that_of_lengths(lengths: NDArray[np.int32]) -> None:
    sampler = _sampler(lengths, shuffle=False)
    first, second = sampler.epoch(1), sampler.epoch(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    longest = [int(lengths[:, batch].max()) for batch in first]
    assert longest == sorted(longest)


@pytest.mark.parametrize("epoch", [1, 5])
def test_an_update_holds_the_same_sentences_for_every_layout(
    lengths: NDArray[np.int32], epoch: int
) -> None:
    reference = _updates(lengths, 1, 8, epoch)
    for world, accumulate in [(2, 4), (4, 2), (8, 1)]:
        assert _updates(lengths, world, accumulate, epoch) == reference


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 3), (8, 1)])
def test_rest_of_an_epoch_is_the_same_for_every_layout(
    lengths: NDArray[np.int32], world: int, accumulate: int
) -> None:
    """What 2 ranks did in 5 updates and another layout does in the rest is every pair once."""
    done = 5 * 2
    seen = [i for update in _updates(lengths, 2, 1)[:5] for i in update]
    rest = [i for update in _updates(lengths, world, accumulate, done=done) for i in update]
    assert sorted(seen + rest) == list(range(lengths.shape[1]))


def test_ranks_work_on_batches_of_like_cost(lengths: NDArray[np.int32]) -> None:
    """In a micro step the longest sentences of 4 ranks are neighbors in the order of lengths."""
    ranks = _ranks(lengths, 4, 1)
    spreads, costs = [], []
    for micro_step in zip(*ranks, strict=True):
        if all(len(batch) for batch in micro_step):
            longest = [int(lengths[:, batch].max()) for batch in micro_step]
            spreads.append(max(longest) / min(longest))
            sizes = [len(b) * n for b, n in zip(micro_step, longest, strict=True)]
            costs.append(max(sizes) / np.mean(sizes))
    assert np.median(spreads) < 1.3
    assert np.mean(costs) < 1.15


def test_long_and_short_batches_are_mixed(lengths: NDArray[np.int32]) -> None:
    longest = np.array([lengths[:, batch].max() for batch in _sampler(lengths).epoch(1)])
    half = len(longest) // 2
    assert abs(longest[:half].mean() - longest[half:].mean()) < 0.5 * longest.std()


def test_fewer_pairs_than_ranks() -> None:
    lengths = np.array([[3, 4], [5, 6]], np.int32)
    sizes = [
        len(_sampler(lengths, r, 4, 2, max_tokens=6).epoch(1)[m]) for r in range(4) for m in (0, 1)
    ]
    assert sorted(sizes) == [0, 0, 0, 0, 0, 0, 1, 1]


def test_too_long_pair_names_length_and_key() -> None:
    lengths = np.array([[3, 50], [5, 6]], np.int32)
    with pytest.raises(UserError, match=r"pair 1 has 50 tokens.*train.max_tokens=49"):
        _sampler(lengths, max_tokens=49)
    assert len(_sampler(lengths, max_tokens=50).epoch(1)) == 2


def test_no_pairs_at_all() -> None:
    with pytest.raises(UserError, match="no sentence pair"):
        _sampler(np.zeros((2, 0), np.int32))


def _old_order(lengths: NDArray[np.int32], max_tokens: int, epoch: int) -> list[list[int]]:
    """Batches of an epoch by the definition on top of `ds_seq.data.batching`, in plain Python."""
    random = np.random.default_rng([7, epoch])
    mixed = random.permutation(lengths.shape[1]).tolist()

    def key(pair: int) -> tuple[int, int]:
        source, target = map(int, lengths[:, pair])
        longest = max(source, target)
        return longest, (source - target) * (1 if longest % 2 == 0 else -1)

    batches: list[list[int]] = []
    for pair in sorted(mixed, key=key):
        if not batches or (len(batches[-1]) + 1) * key(pair)[0] > max_tokens:
            batches.append([])
        batches[-1].append(pair)
    cells, rest = divmod(len(batches), CELL)
    first = int(random.integers(cells + 1)) * CELL
    whole = batches[:first] + batches[first + rest :]
    order = random.permutation(np.arange(len(whole)).reshape(-1, CELL)).reshape(-1)
    return [whole[place] for place in order] + batches[first : first + rest]


@pytest.mark.parametrize(("max_tokens", "epoch"), [(99, 1), (400, 1), (400, 2), (1500, 3)])
def test_the_order_is_what_the_definition_says(
    lengths: NDArray[np.int32], max_tokens: int, epoch: int
) -> None:
    found = [batch.tolist() for batch in _sampler(lengths, max_tokens=max_tokens).epoch(epoch)]
    assert found == _old_order(lengths, max_tokens, epoch)


def test_one_side_and_three_sides(lengths: NDArray[np.int32]) -> None:
    one = TokenBatchSampler(lengths[:1].T, 400, seed=1, accumulate=1)
    assert all(len(batch) * lengths[0, batch].max() <= 400 for batch in one.epoch(1))
    three = np.concatenate([lengths, lengths[:1] * 2]).T
    batches = TokenBatchSampler(three, 400, seed=1, accumulate=1).epoch(1)
    assert all(len(batch) * three[batch].max() <= 400 for batch in batches)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(three)))


def test_all_rows_named_is_the_same_as_none_named(lengths: NDArray[np.int32]) -> None:
    everything = np.arange(lengths.shape[1])
    named = TokenBatchSampler(
        lengths.T, 400, seed=7, accumulate=1, rows=lambda epoch: Selected.whole(everything.copy())
    )
    plain = TokenBatchSampler(lengths.T, 400, seed=7, accumulate=1)
    for epoch in (1, 2, 9):
        assert named.num_updates(epoch=epoch) == plain.num_updates()
        pairs = zip(named.epoch(epoch), plain.epoch(epoch), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("world", "accumulate"), LAYOUTS)
def test_the_rows_of_an_epoch_are_what_it_holds(
    lengths: NDArray[np.int32], world: int, accumulate: int
) -> None:
    asked = []

    def rows(epoch: int) -> Selected:
        """Pairs 0 to 99, pairs 0 to 9 ``epoch`` times more."""
        asked.append(epoch)
        return Selected.whole(np.concatenate([np.arange(100), *[np.arange(10)] * epoch]))

    samplers = [
        TokenBatchSampler(lengths.T, 400, None, 7, rank, world, accumulate=accumulate, rows=rows)
        for rank in range(world)
    ]
    for epoch in (1, 2, 3):
        ranks = [sampler.epoch(epoch) for sampler in samplers]
        assert {len(batches) for batches in ranks} == {
            samplers[0].num_updates(epoch=epoch) * accumulate
        }
        everything = np.concatenate([batch for batches in ranks for batch in batches])
        assert sorted(everything.tolist()) == sorted(rows(epoch).pairs.tolist())
        longest = [
            lengths[:, batch].max(initial=0) * len(batch) for rank in ranks for batch in rank
        ]
        assert max(longest) <= 400
    asked.clear()
    samplers[0].num_batches(2)
    assert not asked, "the sizes of epochs are remembered"


def _all(sampler: TokenBatchSampler, epoch: int = 1) -> list[NDArray[np.int64]]:
    return [batch for batch in sampler.epoch(epoch) if len(batch)]


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_batches_of_a_multiple(lengths: NDArray[np.int32], multiple: int) -> None:
    batches = _all(TokenBatchSampler(lengths.T, 400, seed=7, accumulate=1, multiple=multiple))
    assert sorted(np.concatenate(batches).tolist()) == list(range(lengths.shape[1]))
    odd = [len(batch) for batch in batches if len(batch) > multiple and len(batch) % multiple]
    assert len(odd) <= 1  # what is left at the end
    assert all(len(batch) * lengths[:, batch].max() <= 400 for batch in batches)


def test_sortish_batches_vary_more_and_are_the_same_on_all_ranks(
    lengths: NDArray[np.int32],
) -> None:
    def sampler(rank: int = 0, world: int = 1) -> TokenBatchSampler:
        return TokenBatchSampler(
            lengths.T, 150, None, 7, rank, world, accumulate=1, is_sortish=True
        )

    one = _all(sampler())
    assert sorted(np.concatenate(one).tolist()) == list(range(lengths.shape[1]))
    assert all(len(batch) * lengths[:, batch].max() <= 150 for batch in one)
    ranks = [sampler(rank, 3).epoch(1) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    together = [batch for step in zip(*ranks, strict=True) for batch in step if len(batch)]
    assert [batch.tolist() for batch in together] == [batch.tolist() for batch in one]
    assert [batch.tolist() for batch in _all(sampler(), 2)] != [batch.tolist() for batch in one]
    partners = [set(map(tuple, map(sorted, _all(sampler(), epoch)))) for epoch in (1, 2)]
    assert len(partners[0] & partners[1]) < len(one) / 10


@pytest.mark.parametrize("is_sortish", [False, True])
def test_the_largest_batch_comes_first_once(lengths: NDArray[np.int32], is_sortish: bool) -> None:
    def sizes(epoch: int, first: bool) -> list[int]:
        sampler = TokenBatchSampler(
            lengths.T, 400, None, 7, accumulate=1, is_sortish=is_sortish, starts_with_largest=first
        )
        return [len(batch) * int(lengths[:, batch].max()) for batch in sampler.epoch(epoch)]

    with_probe, without = sizes(1, True), sizes(1, False)
    assert with_probe[0] == max(without) > without[0]
    assert sorted(with_probe) == sorted(without)
    assert sizes(2, True) == sizes(2, False)


@pytest.mark.parametrize(("world", "group"), [(1, 8), (3, 8), (5, 8), (8, 8), (5, 7)])
def test_a_group_of_batches_is_an_update_on_any_number_of_ranks(
    lengths: NDArray[np.int32], world: int, group: int
) -> None:
    reference = TokenBatchSampler(lengths.T, 400, None, 7, accumulate=1).epoch(1)
    accumulate = -(-group // world)
    ranks = [
        TokenBatchSampler(
            lengths.T, 400, None, 7, rank, world, accumulate=accumulate, group=group
        ).epoch(1)
        for rank in range(world)
    ]
    for update in range(len(ranks[0]) // accumulate):
        part = slice(update * accumulate, (update + 1) * accumulate)
        found = sorted(i for batches in ranks for batch in batches[part] for i in batch.tolist())
        expected = reference[update * group : (update + 1) * group]
        assert found == sorted(np.concatenate(expected).tolist())


def test_long_sentences_are_sorted_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths beyond those that are counted give the same order."""
    from ds_seq.data import cuts

    lengths = np.random.default_rng(5).integers(1, 60, (500, 2))
    expected = _all(TokenBatchSampler(lengths, 300, seed=1, accumulate=1))
    monkeypatch.setattr(cuts, "_LONGEST_COUNTED", 10)
    found = _all(TokenBatchSampler(lengths, 300, seed=1, accumulate=1))
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in expected]
