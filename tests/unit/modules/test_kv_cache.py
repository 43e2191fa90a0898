"""What the cache of beam search stores, moves and drops."""

from __future__ import annotations

import pytest
import torch

from ds_seq.modules.kv_cache import BeamPaths, KeptSentences, KeyValueBuffer

HEADS, WIDTH = 2, 3


class Reference:
    """A reference cache: every hypothesis has its own copy of its past, moved along with it."""

    def __init__(self, num_rows: int) -> None:
        self.past = torch.empty(num_rows, 0, HEADS, WIDTH)

    def append(self, key: torch.Tensor) -> None:
        """Store the keys (B, H, K, Dh) of the newest tokens."""
        rows = key.transpose(1, 2).flatten(0, 1)[:, None]
        self.past = torch.cat([self.past, rows], dim=1)


def visible(keys: torch.Tensor, mask: torch.Tensor | None, beam: int) -> list[torch.Tensor]:
    """Return the keys that each hypothesis attends to, out of (B, H, C, Dh), in order."""
    rows = []
    for row in range(len(keys) * beam):
        own = keys[row // beam].transpose(0, 1)
        if mask is None:
            rows.append(own)
        else:
            rows.append(own[mask[row // beam, 0, row % beam] == 0])
    return rows


@pytest.mark.parametrize("length", [17, 21, 70])  # the room never shrinks towards the end
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_every_hypothesis_sees_its_own_past_and_nothing_else(beam, length):
    generator = torch.Generator().manual_seed(beam)
    num_sentences = 6
    paths = BeamPaths(num_sentences, beam, length, torch.empty(0))
    buffer = KeyValueBuffer(paths)
    expected = Reference(num_sentences * beam)
    for step in range(length):
        paths.advance()
        key = torch.randn(num_sentences, HEADS, beam, WIDTH, generator=generator)
        keys, values = buffer.append(key, -key)
        expected.append(key)
        assert torch.equal(values, -keys)
        for actual, reference in zip(visible(keys, paths.mask, beam), expected.past, strict=True):
            assert torch.equal(actual, reference)
        if step in (5, 30, 31):
            kept = torch.randperm(num_sentences, generator=generator)[:-1]
            moves = KeptSentences.of(kept)
            paths.keep_sentences(moves)
            buffer.keep_sentences(moves)
            by_sentence = expected.past.view(num_sentences, beam, *expected.past.shape[1:])
            expected.past = by_sentence[kept].flatten(0, 1)
            num_sentences -= 1
        # mostly one winner, as in real searches
        rows = torch.randint(0, min(beam, 2), (num_sentences, beam), generator=generator)
        rows = (rows + beam * torch.arange(num_sentences)[:, None]).flatten()
        paths.reorder(rows)
        expected.past = expected.past[rows]
    assert paths.num_rows == num_sentences * beam


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_keys_keep_their_positions(beam):
    """Keys and values hold the position at which they were written; `key_positions` must agree."""
    generator = torch.Generator().manual_seed(beam)
    num_sentences, length = 6, 70
    paths = BeamPaths(num_sentences, beam, length, torch.empty(0))
    paths.track_positions()
    buffer = KeyValueBuffer(paths)
    for step in range(length):
        paths.advance()
        key = torch.full((num_sentences, HEADS, beam, WIDTH), float(step))
        keys, _ = buffer.append(key, key)
        columns = keys[:, 0, :, 0].long()
        visible = torch.ones_like(columns, dtype=torch.bool)
        if paths.mask is not None:
            visible = (paths.mask[:, 0] == 0).any(1)
        assert torch.equal(buffer.key_positions[visible], columns[visible])
        if step in (5, 30, 31):
            moves = KeptSentences.of(torch.randperm(num_sentences, generator=generator)[:-1])
            paths.keep_sentences(moves)
            buffer.keep_sentences(moves)
            num_sentences -= 1
        rows = torch.randint(0, min(beam, 2), (num_sentences, beam), generator=generator)
        paths.reorder((rows + beam * torch.arange(num_sentences)[:, None]).flatten())
    assert paths.generation > 2
    if beam > 1:
        assert paths.used < length * beam


def test_hypotheses_share_the_first_key_and_no_other():
    paths = BeamPaths(2, 3, 8, torch.empty(0))
    buffer = KeyValueBuffer(paths)
    paths.advance(1)
    first = torch.randn(2, HEADS, 1, WIDTH)
    assert torch.equal(buffer.append(first, first)[0], first)
    assert paths.mask is None
    paths.reorder(torch.tensor([0, 0, 0, 3, 3, 3]))
    paths.advance(3)
    second = torch.randn(2, HEADS, 3, WIDTH)
    keys = visible(buffer.append(second, second)[0], paths.mask, beam=3)
    for row, seen in enumerate(keys):
        expected = torch.stack([first[row // 3, :, 0], second[row // 3, :, row % 3]])
        assert torch.equal(seen, expected)
    with pytest.raises(ValueError, match="1 keys at position 2 for a beam of 3"):
        paths.advance(1)


def test_positions_are_kept_only_when_requested():
    paths = BeamPaths(2, 2, 8, torch.empty(0))
    with pytest.raises(ValueError, match="track_positions before the first step"):
        _ = paths.key_positions
    paths.advance()
    with pytest.raises(ValueError, match="before the first step"):
        paths.track_positions()


def test_keys_on_no_path_are_dropped():
    """Hypotheses with a common past need one key per position, not one per hypothesis."""
    beam, length = 5, 400
    paths = BeamPaths(3, beam, length, torch.empty(0))
    buffer = KeyValueBuffer(paths)
    for _ in range(length):
        paths.advance()
        buffer.append(*2 * (torch.zeros(3, HEADS, beam, WIDTH),))
        paths.reorder(torch.arange(3).repeat_interleave(beam) * beam)
    assert paths.used <= length + 16 * beam
    assert paths.room <= 1.5 * length + 16 * beam


def test_room_grows_to_what_can_be_used_and_no_further():
    paths = BeamPaths(1, 1, 40, torch.empty(0))
    paths.keep_keys()
    rooms = set()
    for _ in range(40):
        paths.advance()
        rooms.add(paths.room)
    assert max(rooms) == 40
    with pytest.raises(ValueError, match="40 positions"):
        paths.advance()


def test_sentences_that_stay_in_place_are_not_copied():
    rows = torch.arange(12.0).view(6, 2)
    before = rows.data_ptr()
    kept = KeptSentences.of(torch.tensor([0, 5, 2, 3]))
    assert kept.places.tolist() == [1]
    result = kept.apply(rows)
    assert result.data_ptr() == before
    assert result[:, 0].tolist() == [0.0, 10.0, 4.0, 6.0]


def test_steps_are_only_counted_where_nobody_keeps_keys():
    paths = BeamPaths(2, 3, 100, torch.empty(0))
    for _ in range(100):
        paths.advance()
        paths.reorder(torch.tensor([1, 0, 0, 4, 4, 3]))
    assert (paths.length, paths.used, paths.generation, paths.mask) == (100, 0, 0, None)
