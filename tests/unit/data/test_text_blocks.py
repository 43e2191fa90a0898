"""Blocks of text: every token once, the token before each, movement by epoch, documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ds_seq.data.corpora import Part
from ds_seq.data.denoising import BlockTexts
from ds_seq.data.shards import ShardReader, ShardWriter
from ds_seq.data.source import InParts
from ds_seq.data.splitting import emptied, halves, repeated
from ds_seq.data.text import TextDataset
from ds_seq.data.text_blocks import TextBlocks
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

PAD, EOS = 1, 2
SYMBOLS = Symbols(pad=PAD, eos=EOS, unk=3, start=EOS)
LINES = [[7, 8, 9, EOS], [EOS], [10, 11, EOS], [12, EOS], [EOS], [EOS], [13, 14, 15, 16, 17, EOS]]
STREAM = [token for line in LINES for token in line]


def shards(folder: Path, lines: Sequence[Sequence[int]] = LINES) -> ShardReader:
    options = {"vocab_hash": "v", "vocab_size": 40, "languages": ("en", "en"), "shard_size": 3}
    with ShardWriter(folder, "train", num_sides=1, **options) as writer:
        for line in lines:
            writer.add(line)
    return ShardReader(folder, "train")


def rows_of(blocks: TextBlocks, **options) -> list[list[int]]:
    text = blocks.gather(np.arange(len(blocks.lengths)), **options)
    ends = np.cumsum(text.block.lengths)[:-1]
    return [ids.tolist() for ids in np.split(text.block.tokens, ends)]


@pytest.mark.parametrize("most", [2, 6, 100])
def test_symbols_around_lines_are_not_within_noisy_blocks(tmp_path: Path, most: int) -> None:
    """As with BART, whose start symbol opens a whole text."""
    start, last = 0, 30
    lines = shards(tmp_path, [[start, *line, last] for line in LINES])
    dataset = TextDataset(lines, [Part("x", range(7), ("en", "en"))], "tokens", most)
    texts = BlockTexts(dataset, Symbols(PAD, EOS, 3, EOS, opening=(start,), closing=(last,)))
    block = texts.gather(np.arange(len(texts.lengths)), (1, 1))
    assert [t for t in block.tokens if t != EOS] == [t for t in STREAM if t != EOS]
    assert block.lengths.sum() == len(block.tokens) and (block.lengths <= texts.lengths).all()
    if most == 100:
        assert block.tokens.tolist() == STREAM[:-1]


@pytest.mark.parametrize("key", [None, (1, 1), (1, 2), (5, 3)])
@pytest.mark.parametrize("most", [2, 5, 7, 100])
def test_blocks_of_tokens_hold_every_token_once(tmp_path, most, key):
    blocks = TextBlocks(shards(tmp_path), [("all", range(7))], "tokens", most)
    rows = rows_of(blocks, key=key)
    joined = [token for row in rows for token in row]
    start = (
        0
        if key is None
        else next(n for n in range(len(STREAM)) if STREAM[n:] + STREAM[:n] == joined)
    )
    assert joined == STREAM[start:] + STREAM[:start]
    assert [len(row) for row in rows] == blocks.lengths[:, 0].tolist()
    previous = blocks.gather(np.arange(len(rows)), key=key).previous
    assert previous.tolist() == [([*joined[-1:], *joined])[n * most] for n in range(len(rows))]


def test_blocks_move_with_the_epoch_alone(tmp_path):
    blocks = TextBlocks(shards(tmp_path), [("all", range(7))], "tokens", 6)
    by_epoch = [rows_of(blocks, key=(3, epoch)) for epoch in range(1, 7)]
    assert len({str(rows) for rows in by_epoch}) > 2
    assert rows_of(blocks, key=(3, 2)) == by_epoch[1]
    some = blocks.gather(np.asarray([2, 0]), key=(3, 2)).block
    assert some.tokens.tolist() == by_epoch[1][2] + by_epoch[1][0]


def test_documents_end_at_empty_lines_and_long_ones_are_cut(tmp_path):
    blocks = TextBlocks(shards(tmp_path), [("all", range(7))], "document", 4)
    assert rows_of(blocks) == [
        [7, 8, 9, EOS], [10, 11, EOS, 12], [EOS], [13, 14, 15, 16], [17, EOS]
    ]  # fmt: skip
    assert blocks.gather(np.arange(5)).previous.tolist() == [-1, -1, 12, -1, 16]
    lines = TextBlocks(shards(tmp_path), [("all", range(7))], "line", 10)
    assert rows_of(lines) == [line for line in LINES if len(line) > 1]


def test_no_block_is_in_two_corpora(tmp_path):
    corpora = [("first", range(0, 3)), ("second", range(3, 7))]
    blocks = TextBlocks(shards(tmp_path), corpora, "tokens", 5)
    assert blocks.first.tolist() == [0, 2, 4]
    cut = len([token for line in LINES[:3] for token in line])
    for key in (None, (1, 4)):
        rows = rows_of(blocks, key=key)
        assert sorted(rows[0] + rows[1]) == sorted(STREAM[:cut])
        assert sorted(rows[2] + rows[3]) == sorted(STREAM[cut:])


def test_context_is_read_and_not_scored(tmp_path):
    parts = [Part("all", range(7), ("en", "en"))]
    dataset = TextDataset(shards(tmp_path), parts, "tokens", 3, context=4)
    batch = dataset.collate([0, 1, 2, 3], SYMBOLS)
    assert dataset.lengths[:, 0].tolist()[:4] == [3, 6, 7, 7]
    for row in range(4):
        start = 3 * row
        context = min(4, start)
        real = batch.inputs.token_mask[row]
        assert batch.labels[row][real].tolist() == STREAM[start - context : start + 3]
        assert batch.labels[row][batch.mask[row]].tolist() == STREAM[start : start + 3]
        before = ([EOS, *STREAM])[start - context : start + 3]
        assert batch.inputs.tokens[row][real].tolist() == before
    assert batch.num_tokens == batch.inputs.num_targets == 12 == int(batch.mask.sum())
    assert batch.inputs.num_tokens == int(batch.inputs.token_mask.sum()) == 23


def test_batches_are_halved_repeated_and_emptied(tmp_path):
    parts = [Part("all", range(7), ("en", "en"))]
    dataset = TextDataset(shards(tmp_path), parts, "line", 10)
    assert isinstance(dataset, InParts)
    batch = dataset.collate(range(4), SYMBOLS)
    parts_of = halves(batch)
    assert [int(half.inputs.token_mask.sum()) for half in parts_of] == [7, 8]
    assert [half.num_tokens for half in parts_of] == [half.inputs.num_targets for half in parts_of]
    twice = repeated(batch, 2)
    assert twice.num_tokens == 2 * batch.num_tokens == int(twice.inputs.target_mask.sum())
    for none in (emptied(batch), dataset.collate([], SYMBOLS)):
        assert none.num_tokens == none.num_sentences == 0
        assert none.inputs.tokens.shape == (1, 1) and none.inputs.token_mask.all()


@pytest.mark.parametrize(
    "lines, message",
    [
        ([[EOS]], "has only 1 token, and a language model predicts"),
        ([[EOS], [EOS]], "all lines of the text are empty"),
    ],
)
def test_text_without_enough_tokens(tmp_path, lines, message):
    reader = shards(tmp_path, lines)
    with pytest.raises(UserError, match=f"news: .*{message}"):
        TextBlocks(reader, [("news", range(len(lines)))], "line", 4)


def test_pairs_are_refused_by_name(reader):
    with pytest.raises(UserError, match=r"shards have pairs, .* set data\.language"):
        TextBlocks(reader, [("train", range(len(reader)))], "tokens", 4)
