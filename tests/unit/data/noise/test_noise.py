"""Noise is a function of (seed, epoch, row), and changes as much as it should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ds_seq.data.noise.masking import Masking
from ds_seq.data.noise.rows import RowDraws, framed, unframed
from ds_seq.data.noise.spans import SpanNoise
from ds_seq.data.noise.text import NoiseVocab, TextNoise
from ds_seq.data.source import TokenBlock
from ds_seq.text.tokenizer import Symbols

MASK, STOP, FIRST, SIZE = 4, 5, 6, 250_006
LENGTHS = [40, 1, 7, 0, 200, 2, 33]
NONE = TextNoise(0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0)
NOISES = {
    "sentences": NONE._replace(permute_sentences=1.0),
    "mask": NONE._replace(mask=0.3),
    "delete": NONE._replace(delete=0.3),
    "infill": NONE._replace(infill=0.3),
    "rotate": NONE._replace(rotate=1.0),
    "all": TextNoise(1.0, 0.1, 0.1, 0.3, 2.0, 0.1, 0.5),
}


def vocab(starts_word: float = 1.0) -> NoiseVocab:
    """A vocabulary in which a share of the tokens begins a word."""
    starts = np.random.default_rng(1).random(SIZE) < starts_word
    return NoiseVocab(MASK, np.arange(FIRST, SIZE), starts, np.arange(SIZE) == STOP)


def text(lengths: list[int]) -> TokenBlock:
    """Rows without equal tokens but the ends of sentences, every seventh token."""
    tokens = np.arange(FIRST, FIRST + sum(lengths))
    tokens[6::7] = STOP
    return TokenBlock(tokens, np.asarray(lengths))


def rows_of(block: TokenBlock) -> list[list[int]]:
    return [row.tolist() for row in np.split(block.tokens, np.cumsum(block.lengths)[:-1])]


def noisy(noise: TextNoise, lengths: list[int], epoch: int = 1) -> list[list[int]]:
    draws = RowDraws(np.arange(len(lengths)), (3, epoch))
    return rows_of(noise(text(lengths), draws, vocab()))


def _as_text(noise: TextNoise) -> Callable[[TokenBlock, RowDraws], list[TokenBlock]]:
    return lambda block, draws: [noise(block, draws, vocab(0.6))]


def _masking(block: TokenBlock, draws: RowDraws) -> list[TokenBlock]:
    masked = Masking(0.15, 0.1, 0.1)(block, draws, vocab(0.6))
    return [masked.block, TokenBlock(masked.is_predicted.astype(np.int64), block.lengths)]


SPANS = SpanNoise(0.15, 3.0, np.arange(10**6, 10**6 + 100))
EVERY: dict[str, Callable[[TokenBlock, RowDraws], object]] = {
    **{name: _as_text(noise) for name, noise in NOISES.items()},
    "spans": SPANS,
    "masking": _masking,
}


@pytest.mark.parametrize("name", EVERY)
def test_a_row_is_changed_alike_alone_and_in_any_block(name: str) -> None:
    block = text(LENGTHS)
    numbers = np.asarray([5, 900, 17, 2, 70_000_000, 6, 1])
    together = EVERY[name](block, RowDraws(numbers, (3, 2)))
    order = np.asarray([4, 0, 6, 5, 1, 3, 2])
    rows = rows_of(block)
    shuffled = EVERY[name](
        TokenBlock.of([rows[n] for n in order]), RowDraws(numbers[order], (3, 2))
    )
    for side, other in zip(together, shuffled, strict=True):  # type: ignore[call-overload]
        assert [rows_of(side)[n] for n in order] == rows_of(other)
    for number, row in enumerate(rows):
        alone = EVERY[name](TokenBlock.of([row]), RowDraws(numbers[number : number + 1], (3, 2)))
        for side, other in zip(together, alone, strict=True):  # type: ignore[call-overload]
            assert rows_of(side)[number] == rows_of(other)[0]


@pytest.mark.parametrize("name", EVERY)
def test_another_epoch_seed_or_row_is_another_noise(name: str) -> None:
    block = text([200])

    def made(row: int, *key: int) -> bytes:
        (first, *_) = EVERY[name](block, RowDraws(np.asarray([row]), key))  # type: ignore[misc]
        return bytes(first.tokens.tobytes())

    assert made(1, 3, 2) == made(1, 3, 2)
    assert len({made(1, 3, 2), made(1, 3, 3), made(1, 4, 2), made(2, 3, 2)}) == 4


@pytest.mark.parametrize("name", NOISES)
def test_no_row_becomes_longer(name: str) -> None:
    lengths = [*range(30), 500]
    for epoch in range(20):
        noised = noisy(NOISES[name], lengths, epoch)
        assert all(len(row) <= most for row, most in zip(noised, lengths, strict=True))


def test_sentences_change_places_as_wholes() -> None:
    before, after = rows_of(text([40]))[0], noisy(NOISES["sentences"], [40])[0]
    assert after != before and sorted(after) == sorted(before)

    def sentences(row: list[int]) -> list[tuple[int, ...]]:
        found: list[list[int]] = [[]]
        for token in row:
            found[-1].append(token)
            if token == STOP:
                found.append([])
        return sorted(tuple(sentence) for sentence in found)

    # the last sentence has no end of its own, so it is joined to what follows it now
    whole = [sentence for sentence in sentences(before) if sentence[-1:] == (STOP,)]
    text_after = ",".join(map(str, after))
    assert all(",".join(map(str, sentence)) in text_after for sentence in whole)


def test_half_of_the_sentences_stay_if_half_may_move() -> None:
    block, draws = text([700]), RowDraws(np.asarray([1]), (3, 1))
    after = NONE._replace(permute_sentences=0.5)(block, draws, vocab())
    unchanged = float((after.tokens == block.tokens).mean())
    assert 0.45 < unchanged < 0.65  # some that may move come to their own place


def test_masks_and_deletions_have_their_share_even_of_short_rows() -> None:
    lengths = [4] * 5000
    masked = np.asarray(noisy(NOISES["mask"], lengths))
    assert float((masked == MASK).mean()) == pytest.approx(0.3, abs=0.01)
    deleted = noisy(NOISES["delete"], lengths)
    assert sum(map(len, deleted)) / 20000 == pytest.approx(0.7, abs=0.01)
    kept = [[token for token in row if token != STOP] for row in deleted]
    assert all(row == sorted(row) for row in kept)  # the order stays


def test_infilling_masks_its_share_in_spans_of_the_mean_length() -> None:
    lengths = [100] * 400
    after = noisy(NOISES["infill"], lengths)
    masks = sum(row.count(MASK) for row in after)
    kept = sum(map(len, after)) - masks
    assert kept / 40_000 == pytest.approx(0.7, abs=0.001)
    # the last span of a row is cut, so that the mean is a little lower
    assert 2.7 < 12_000 / masks < 3.1
    for row, before in zip(after, rows_of(text(lengths)), strict=True):
        rest = iter(before)
        assert all(token == MASK or token in rest for token in row)  # in the same order


def test_the_spans_of_infilling_begin_anywhere() -> None:
    after = noisy(NONE._replace(infill=0.3), [10] * 20_000)
    places = np.bincount([row.index(MASK) / len(row) > 0.5 for row in after if MASK in row])
    first = np.mean([row[0] == MASK for row in after])
    last = np.mean([row[-1] == MASK for row in after])
    assert first == pytest.approx(last, abs=0.02) and places.min() > 4000


def test_random_tokens_replace_a_share_of_the_masks() -> None:
    before, after = text([1000]).tokens, noisy(NONE._replace(mask=0.5, random=0.2), [1000])[0]
    assert after.count(MASK) == pytest.approx(400, abs=40)
    changed = [new for new, old in zip(after, before, strict=True) if new not in (old, MASK)]
    assert len(changed) == pytest.approx(100, abs=30) and min(changed) >= FIRST


def test_words_are_masked_deleted_and_infilled_as_wholes() -> None:
    block, words = text([300]), vocab(0.4)
    draws = RowDraws(np.asarray([1]), (3, 1))
    starts = words.starts_word[block.tokens]
    starts[0] = True
    word_of = np.cumsum(starts) - 1
    masked = NOISES["mask"](block, draws, words).tokens == MASK
    per_word = np.bincount(word_of, masked) / np.bincount(word_of)
    assert set(per_word) == {0.0, 1.0} and 0.25 < per_word.mean() < 0.35
    for noise in ("delete", "infill"):
        left = set(NOISES[noise](block, draws, words).tokens.tolist())
        kept = np.asarray([token in left for token in block.tokens.tolist()])
        plain = block.tokens != STOP  # which stands there several times
        shares = np.bincount(word_of[plain], kept[plain]) / np.maximum(
            np.bincount(word_of[plain], minlength=1), 1
        )
        assert set(shares) <= {0.0, 1.0}


def test_a_rotation_begins_elsewhere_and_goes_around() -> None:
    before, after = rows_of(text([40]))[0], noisy(NOISES["rotate"], [40])[0]
    assert after != before
    assert after in [before[n:] + before[:n] for n in range(40)]
    rotated = noisy(NONE._replace(rotate=0.25), [60] * 2000)
    changed = sum(new != old for new, old in zip(rotated, rows_of(text([60] * 2000)), strict=True))
    assert changed / 2000 == pytest.approx(0.25 * 59 / 60, abs=0.03)


def _masks_by_t5(length: int) -> tuple[int, int]:
    """Return masked tokens and spans as the definition of T5 computes them for a row."""
    masked = min(max(int(np.round(length * 0.15)), 1), length - 1)
    return masked, max(int(np.round(masked / 3.0)), 1)


@pytest.mark.parametrize("length", [2, 3, 10, 64, 250, 512])
def test_inputs_and_targets_of_spans_make_the_text(length: int) -> None:
    block = text([length, 3])
    inputs, targets = SPANS(block, RowDraws(np.asarray([8, 9]), (3, 1)))
    assert np.array_equal(
        np.stack([inputs.lengths, targets.lengths], 1), SPANS.lengths(block.lengths)
    )
    source, target = rows_of(inputs)[0], rows_of(targets)[0]
    sentinels = [token for token in source if token >= 10**6]
    masked, spans = _masks_by_t5(length)
    assert sentinels == list(range(10**6, 10**6 + spans)) and source[-1] == sentinels[-1]
    assert [token for token in target if token >= 10**6] == sentinels
    assert len(target) == masked + spans
    filled: list[int] = []
    for token in source:
        if token < 10**6:
            filled.append(token)
            continue
        start = target.index(token) + 1
        stop = target.index(token + 1) if token + 1 in target else len(target)
        assert stop > start  # no span is empty
        filled += target[start:stop]
    assert filled == rows_of(block)[0]


def test_a_row_has_no_more_spans_than_symbols() -> None:
    few = SPANS._replace(sentinels=SPANS.sentinels[:2])
    inputs, _ = few(text([400]), RowDraws(np.asarray([1]), (3, 1)))
    assert (inputs.tokens >= 10**6).sum() == 2


def test_masked_tokens_are_80_10_10_and_at_least_one_of_a_row() -> None:
    lengths = [1, 2, 3] * 4000
    block = text([20_000])
    masked = Masking(0.15, 0.1, 0.1)(block, RowDraws(np.asarray([1]), (3, 1)), vocab())
    chosen, before = masked.is_predicted, block.tokens
    assert chosen.sum() == pytest.approx(3000, abs=1)
    after = masked.block.tokens
    assert np.array_equal(after[~chosen], before[~chosen])
    assert (after[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.03)
    assert (after[chosen] == before[chosen]).mean() == pytest.approx(0.1, abs=0.02)
    short = TokenBlock(np.full(sum(lengths), FIRST), np.asarray(lengths))
    draws = RowDraws(np.arange(len(lengths)), (3, 1))
    few = Masking(0.15, 0.1, 0.1)(short, draws, vocab())
    per_row = np.add.reduceat(few.is_predicted, np.cumsum(lengths) - lengths)
    assert per_row.min() == per_row.max() == 1


FRAMES: dict[str, tuple[Symbols, NDArray[np.int64]]] = {
    "end": (Symbols(1, 2, 3, 2), np.asarray([6, 7, 2, 2, 8, 2])),
    "both": (
        Symbols(1, 2, 3, 2, opening=(0,), closing=(9,)),
        np.asarray([0, 6, 7, 2, 9, 0, 2, 9, 0, 8, 2, 9]),
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_symbols_around_rows_are_taken_off_and_put_back(name: str) -> None:
    symbols, tokens = FRAMES[name]
    more = len(symbols.opening) + 1 + len(symbols.closing)
    block = TokenBlock(tokens, np.asarray([2, 0, 1]) + more)
    bare = unframed(block, symbols)
    assert rows_of(bare) == [[6, 7], [], [8]]
    assert rows_of(framed(bare, symbols)) == rows_of(block)
