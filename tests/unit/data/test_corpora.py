"""Examples of several corpora: tags, documents, cuts, and changes that depend on the pair alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ds_seq.config.modifiers import ModifiersConfig
from ds_seq.data.blocks import cut_sentences, join_lengths, join_sentences, prepend
from ds_seq.data.corpora import CorporaDataset, Part
from ds_seq.data.modify import Changes, Modifier
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers

KEY = (3, 2)
LANGUAGES = ("en", "de")


def _changes(**options: Any) -> Changes:
    return Changes(**ModifiersConfig(**options).model_dump())


def _dataset(
    reader: ShardReader, vocab: SentencePieceTokenizer, most: int | None = None, **options: Any
) -> CorporaDataset:
    """Two corpora: the first 100 pairs as they are, the others with what is given."""
    changes = options.pop("changes", None)
    modifier = None if changes is None else Modifier(_changes(**changes), Tokenizers.shared(vocab))
    plain = Part("plain", range(100), LANGUAGES)
    other = Part("other", range(100, len(reader)), LANGUAGES, modifier=modifier, **options)
    return CorporaDataset(reader, [plain, other], most, most)


def _sides(dataset: CorporaDataset, vocab: SentencePieceTokenizer, at: list[int]) -> list[Any]:
    """Source and target ids of some examples, without padding."""
    batch = dataset.collate(at, vocab.symbols)
    return [
        (s[m].tolist(), t[n].tolist())
        for s, m, t, n in zip(
            batch.inputs.source, batch.inputs.source_mask, batch.labels, batch.mask, strict=True
        )
    ]


def _pairs(reader: ShardReader, at: list[int]) -> list[Any]:
    return [tuple(side.tolist() for side in reader[row]) for row in at]


def test_blocks_are_joined_cut_and_extended() -> None:
    block = TokenBlock.of([[5, 6, 2], [7, 2], [8, 9, 10, 2]])
    joined = join_sentences(block, np.asarray([2, 1]))
    assert joined.tokens.tolist() == [5, 6, 7, 2, 8, 9, 10, 2]
    assert joined.lengths.tolist() == [4, 4]
    cut = cut_sentences(block, np.asarray([2, 9, 3]))
    assert cut.tokens.tolist() == [5, 2, 7, 2, 8, 9, 2] and cut.lengths.tolist() == [2, 2, 3]
    tagged = prepend(block, [(4,), (), (3, 4)])
    assert tagged.tokens.tolist() == [4, 5, 6, 2, 7, 2, 3, 4, 8, 9, 10, 2]
    assert tagged.lengths.tolist() == [4, 2, 6]


def test_documents_are_full_and_do_not_pass_over_gaps() -> None:
    rows = np.asarray([0, 1, 2, 3, 5, 6, 7])
    lengths = np.asarray([[3, 2], [3, 2], [3, 9], [30, 2], [2, 2], [2, 2], [2, 2]])
    first, counts, joined = join_lengths(rows, lengths, np.asarray([9, 9]))
    assert first.tolist() == [0, 2, 3, 4]
    assert counts.tolist() == [2, 1, 1, 3]
    assert joined.tolist() == [[5, 3], [3, 9], [30, 2], [4, 4]]


def test_without_changes_examples_are_the_pairs(
    reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    dataset = _dataset(reader, vocab)
    at = [0, 99, 100, 299, 7]
    assert _sides(dataset, vocab, at) == _pairs(reader, at)
    assert dataset.part_of(np.asarray(at)).tolist() == [0, 0, 1, 1, 0]
    assert len(dataset) == len(reader) and not dataset.num_left_out


def test_tags_and_documents(reader: ShardReader, vocab: SentencePieceTokenizer) -> None:
    dataset = _dataset(reader, vocab, tags=((7, 8), (9,)), join=150)
    number = int(dataset.first[1])
    (source, target), plain = _sides(dataset, vocab, [number, 3])
    assert plain == _pairs(reader, [3])[0]
    count = int(dataset.rows[number + 1] - dataset.rows[number])
    assert count > 1
    pairs = _pairs(reader, list(range(100, 100 + count)))
    assert source == [7, 8, *(i for s, _ in pairs for i in s[:-1]), 2]
    assert target == [9, *(i for _, t in pairs for i in t[:-1]), 2]
    assert dataset.lengths[number].tolist() == [len(source), len(target)]
    assert (dataset.lengths[number:] <= [152, 151]).all()


@pytest.mark.parametrize("side", [0, 1])
def test_cut_pairs_are_kept(reader: ShardReader, vocab: SentencePieceTokenizer, side: int) -> None:
    most = int(np.median(reader.lengths[100:, side]))
    assert _dataset(reader, vocab, most).num_left_out > 50
    dataset = _dataset(reader, vocab, most, changes={"truncate": most})
    assert dataset.num_left_out == int((reader.lengths[:100] > most).any(axis=1).sum())
    at = list(range(int(dataset.first[1]), len(dataset)))
    cut, whole = _sides(dataset, vocab, at), _pairs(reader, list(range(100, len(reader))))
    for (found, given), size in zip(zip(cut, whole, strict=True), dataset.lengths[at], strict=True):
        for ids, full in zip(found, given, strict=True):
            assert ids == (full if len(full) <= most else [*full[: most - 1], 2])
        assert size.tolist() == [len(ids) for ids in found]


CHANGES = [
    {"subword_alpha": 0.3},
    {"upper_case": 0.5, "lower_case": 0.5},
    {"title_case": 0.6, "drop_end_punctuation": 0.6},
    {"typos": 1.0, "typo_rate": 0.5},
    {"noise": 0.5},
    {"token_drop": 0.2, "token_mask": 0.2, "token_switch": 0.2},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_changes_are_a_function_of_seed_epoch_and_pair(
    reader: ShardReader, vocab: SentencePieceTokenizer, changes: dict[str, Any]
) -> None:
    dataset = _dataset(reader, vocab, changes=changes)
    at = list(range(90, 160))
    plain = _sides(dataset, vocab, at)
    assert plain == _pairs(reader, at), "no epoch, no changes"
    now = dataset.in_epoch(KEY)
    found = _sides(now, vocab, at)
    assert found[:10] == plain[:10], "the other corpus stays as it is"
    assert found[10:] != plain[10:]
    backwards = _sides(dataset.in_epoch(KEY), vocab, at[::-1])
    assert backwards[::-1] == found, "in whatever batch"
    assert _sides(dataset.in_epoch((3, 4)), vocab, at) != found
    assert _sides(dataset.in_epoch((4, 2)), vocab, at) != found
    bounds = now.bounds(KEY, np.asarray(at))
    assert (np.asarray([[len(s), len(t)] for s, t in found]) <= bounds).all()


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_copies_in_an_epoch_are_changed_in_ways_of_their_own(
    reader: ShardReader, vocab: SentencePieceTokenizer, changes: dict[str, Any]
) -> None:
    dataset = _dataset(reader, vocab, changes=changes).in_epoch(KEY)
    at = np.arange(90, 160)
    first, second, third = (
        _sides(dataset, vocab, (at + copy * len(dataset)).tolist()) for copy in range(3)
    )
    assert first[:10] == second[:10] == third[:10], "the other corpus stays as it is"
    assert first[10:] != second[10:] != third[10:] != first[10:]
    assert dataset.part_of(at + 2 * len(dataset)).tolist() == dataset.part_of(at).tolist()
    bounds = dataset.bounds(KEY, at + len(dataset))
    assert (np.asarray([[len(s), len(t)] for s, t in second]) <= bounds).all()


def test_a_stage_has_modifiers_of_its_own(
    reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    other = Modifier(_changes(lower_case=1.0), Tokenizers.shared(vocab))
    changes = {"upper_case": 1.0, "truncate": 200}
    dataset = _dataset(reader, vocab, changes=changes, in_stages={1: None, 2: other})
    at = list(range(100, 140))
    by_stage = [_sides(dataset.in_epoch(KEY, stage), vocab, at) for stage in range(4)]
    assert by_stage[0] == by_stage[3] != by_stage[1] != by_stage[2] != by_stage[0]
    assert by_stage[1] == _sides(dataset, vocab, at), "nothing changes, apart from cuts"
    texts = [vocab.decode(source) for source, _ in by_stage[2]]
    assert all(text == text.lower() for text in texts)
    bounds = [dataset.bounds(KEY, np.asarray(at), stage) for stage in range(3)]
    assert np.array_equal(bounds[1], dataset.lengths[at])
    assert (bounds[0] > bounds[1]).any() and not np.array_equal(bounds[0], bounds[2])


def test_drawn_subwords_are_the_same_text(
    reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    dataset = _dataset(reader, vocab, changes={"subword_alpha": 0.2, "subword_sides": "target"})
    at = list(range(100, 200))
    found, plain = _sides(dataset.in_epoch(KEY), vocab, at), _pairs(reader, at)
    assert [source for source, _ in found] == [source for source, _ in plain]
    texts = [[vocab.decode(target) for _, target in pairs] for pairs in (found, plain)]
    assert texts[0] == texts[1]
    assert sum(new != old for new, old in zip(found, plain, strict=True)) > 50


def test_a_cache_of_a_teacher_needs_the_pairs_as_they_are(
    reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    cache: Any = None
    with pytest.raises(UserError, match=r"criterion\.cache: .* other has tags"):
        _dataset(reader, vocab, tags=((7,), ())).attach(cache)


def test_fingerprints_name_the_corpus_that_has_changed(
    reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    one, other = _dataset(reader, vocab), _dataset(reader, vocab, fingerprint="another text")
    assert one.fingerprint_of(0) == other.fingerprint_of(0)
    assert one.fingerprint_of(1) != other.fingerprint_of(1)
