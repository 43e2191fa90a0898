"""From journals to a data folder: filters, order, mixing, and what is taken over."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ds_seq.data.binarize import binarize
from ds_seq.data.shards import ShardReader
from ds_seq.distill import assembly
from ds_seq.distill.assembly import Sources, Summary, assemble, copy_rest
from ds_seq.distill.filters import Filters
from ds_seq.distill.journal import Journals, JournalWriter
from ds_seq.errors import UserError
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.toy import toy_pairs
from tests.data.vocabulary import train_vocab

NUM_PAIRS = 40
Pairs = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the splits ``train``, of several shards, and ``valid``."""
    folder = tmp_path_factory.mktemp("lab") / "data"
    folder.mkdir()
    for split, pairs in (("train", toy_pairs(NUM_PAIRS)), ("valid", toy_pairs(9, seed=2))):
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder.parent / f"{split}.{language}").write_text(text, encoding="utf-8")
    texts = [folder.parent / f"train.{language}" for language in ("en", "de")]
    vocab = train_vocab(texts, folder / "vocab.model", 120)
    for split in ("train", "valid"):
        source, target = (folder.parent / f"{split}.{language}" for language in ("en", "de"))
        binarize(
            Tokenizers.shared(vocab),
            source,
            target,
            folder,
            split,
            languages=("en", "de"),
            shard_size=7,
        )
    return folder


@pytest.fixture
def vocab(data: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.load(data / "vocab.model")


@pytest.fixture
def reader(data: Path) -> ShardReader:
    return ShardReader(data, "train")


Found = dict[int, list[tuple[str, float]]]
"""Text and score of the hypotheses of some sentences."""


def journals(folder: Path, vocab: SentencePieceTokenizer, found: Found) -> Journals:
    """Two journals that hold these hypotheses in no particular order of sentences."""
    rows = sorted(found, key=lambda row: row * 7 % NUM_PAIRS)
    paths = [folder / "journal.0", folder / "journal.1"]
    for path, mine in zip(paths, (rows[::2], rows[1::2]), strict=True):
        with JournalWriter(path, vocab.symbols.eos) as writer:
            for row in mine:
                several = [Hypothesis(vocab.encode(text), s, []) for text, s in found[row]]
                writer.append(np.array([row]), [several])
    return Journals(paths)


def made(
    folder: Path,
    reader: ShardReader,
    vocab: SentencePieceTokenizer,
    found: Found,
    filters: Filters = Filters(),  # noqa: B008 (frozen)
    original: float = 0.0,
) -> tuple[Pairs, Summary]:
    """The pairs that are written, and what is said about them."""
    folder.mkdir(exist_ok=True)
    sources = Sources(reader, journals(folder, vocab, found), Tokenizers.shared(vocab))
    summary = assemble(sources, filters, original, folder, "train", shard_size=9)
    return pairs(ShardReader(folder, "train", vocab.fingerprint)), summary


def pairs(reader: ShardReader) -> Pairs:
    reader.check(full=True)
    return [
        (source.tolist(), target.tolist())
        for source, target in map(reader.__getitem__, range(len(reader)))
    ]


def labels(
    reader: ShardReader, vocab: SentencePieceTokenizer, wanted: Sequence[tuple[int, str]]
) -> Pairs:
    """The pairs that these sentences and texts make."""
    return [(reader[row][0].tolist(), [*vocab.encode(t), vocab.symbols.eos]) for row, t in wanted]


def gold(reader: ShardReader, vocab: SentencePieceTokenizer, row: int) -> str:
    return vocab.decode(reader[row][1].tolist())


def test_hypotheses_become_pairs_by_sentence_and_rank(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    found: Found = {
        row: [(f"{gold(reader, vocab, row)} {n}", -n - 0.5) for n in range(1 + row % 3)]
        for row in range(0, NUM_PAIRS, 2)
    }
    wanted = [(row, text) for row in sorted(found) for text, _ in found[row]]
    written, summary = made(tmp_path, reader, vocab, found)
    assert written == labels(reader, vocab, wanted)
    assert len(ShardReader(tmp_path, "train").manifest.shards) == -(-len(wanted) // 9)
    assert (summary.labels, summary.sentences, summary.originals) == (len(wanted), len(found), 0)
    assert summary.hypotheses == len(wanted) and not sum(summary.dropped.values())
    scores = [score for several in found.values() for _, score in several]
    assert summary.mean_score == pytest.approx(np.mean(scores))
    ratios = [(len(target) - 1) / (len(source) - 1) for source, target in written]
    assert summary.mean_ratio == pytest.approx(np.mean(ratios))


def test_the_score_is_compared_with_its_edge(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    below, edge = np.nextafter(np.float32(-0.75), np.float32(-1)), -0.75
    found: Found = {0: [("a", -0.5), ("b", edge)], 3: [("c", float(below))], 4: [("d", -0.1)]}
    written, summary = made(tmp_path, reader, vocab, found, Filters(min_score=edge))
    assert written == labels(reader, vocab, [(0, "a"), (0, "b"), (4, "d")])
    assert summary.dropped == {"empty": 0, "--min-score": 1}
    assert summary.sentences == 2


def test_empty_hypotheses_never_become_labels(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    found: Found = {0: [("", -0.1), ("b", -0.2)], 1: [("", -float("inf"))]}
    written, summary = made(tmp_path, reader, vocab, found, Filters(max_ratio=1e9))
    assert written == labels(reader, vocab, [(0, "b")])
    assert summary.dropped["empty"] == 2
    assert summary.mean_score == pytest.approx(-0.2)


def test_the_ratio_of_lengths_goes_both_ways(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    size = len(reader[0][0]) - 1  # without the end symbol, as all lengths here
    lengths = ((size - 1) // 2, size, 2 * size, 2 * size + 1)
    found = [Hypothesis([9] * length, -0.1, []) for length in lengths]
    with JournalWriter(tmp_path / "j", vocab.symbols.eos) as writer:
        writer.append(np.array([0]), [found])
    sources = Sources(reader, Journals([tmp_path / "j"]), Tokenizers.shared(vocab))
    summary = assemble(sources, Filters(max_ratio=2.0), 0.0, tmp_path, "train", 9)
    assert ShardReader(tmp_path, "train").lengths[:, 1].tolist() == [size + 1, 2 * size + 1]
    assert summary.dropped["--max-ratio"] == 2


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rouge1", "rouge2", "rougeL"])
def test_similarity_to_the_reference(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer, metric: str
) -> None:
    """Each sentence has its own reference: what is perfect for one is dropped for another."""
    texts = [gold(reader, vocab, row) for row in range(4)]
    found: Found = {row: [(texts[row], -1.0), (texts[row - 1], -2.0)] for row in range(4)}
    perfect = Filters(min_metric={metric: 99.999})
    written, summary = made(tmp_path / "a", reader, vocab, found, perfect)
    assert written == labels(reader, vocab, list(enumerate(texts)))
    assert summary.dropped == {"empty": 0, f"--min-{metric}": 4}
    written, _ = made(tmp_path / "b", reader, vocab, found, Filters(min_metric={metric: 0.0}))
    assert len(written) == 8, "the edge itself passes"


def test_the_hypothesis_that_is_closest_to_the_reference(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    texts = [gold(reader, vocab, row) for row in range(3)]
    half = " ".join(texts[1].split()[:3])
    found: Found = {
        0: [("was", -0.1), (texts[0], -5.0)],  # closest, but dropped by its score
        1: [(half, -0.1), ("was", -0.2), (texts[1], -0.3), (texts[1], -0.4)],  # equal: the first
        2: [("was", -3.0)],  # nothing to choose from
    }
    filters = Filters(min_score=-1.0, best_metric="chrf")
    written, summary = made(tmp_path, reader, vocab, found, filters)
    assert written == labels(reader, vocab, [(0, "was"), (1, texts[1])])
    assert summary.mean_score == pytest.approx(-0.2)
    assert summary.dropped["--min-score"] == 2 and summary.dropped["--best-metric"] == 3


def test_the_closest_is_sought_among_those_that_pass(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    words = gold(reader, vocab, 0).split()
    other, close = " ".join(words[:4]), " ".join(words[::-1])
    found: Found = {0: [(close, -1.0), (other, -2.0)]}
    assert made(tmp_path / "a", reader, vocab, found, Filters(best_metric="rouge1"))[0] == (
        labels(reader, vocab, [(0, close)])
    )
    filters = Filters(min_metric={"rouge2": 10.0}, best_metric="rouge1")  # order does not count
    assert made(tmp_path / "b", reader, vocab, found, filters)[0] == (
        labels(reader, vocab, [(0, other)])
    )


def test_a_hypothesis_is_counted_where_it_first_fails(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    found: Found = {0: [("was", -9.0), ("was", -0.5), (gold(reader, vocab, 0), -0.5)]}
    filters = Filters(min_score=-1.0, min_metric={"bleu": 50.0, "chrf": 50.0})
    _, summary = made(tmp_path, reader, vocab, found, filters)
    assert summary.dropped == {"empty": 0, "--min-score": 1, "--min-bleu": 1, "--min-chrf": 0}


@pytest.mark.parametrize("metrics", [{}, {"chrf": 20.0}])
def test_neither_chunks_nor_processes_change_a_byte(
    tmp_path: Path,
    reader: ShardReader,
    vocab: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    metrics: dict[str, float],
) -> None:
    texts = [gold(reader, vocab, row) for row in range(NUM_PAIRS)]
    found: Found = {
        row: [(texts[row - n], -1.0 * n) for n in range(3)] for row in range(NUM_PAIRS) if row != 5
    }
    filters = Filters(-1.5, None, metrics, "chrf" if metrics else None)
    expected = made(tmp_path / "a", reader, vocab, found, filters, 0.5)
    monkeypatch.setattr(assembly, "_CHUNK", 3)
    progress: list[int] = []
    sources = Sources(
        reader,
        Journals([tmp_path / "a" / f"journal.{n}" for n in (0, 1)]),
        Tokenizers.shared(vocab),
    )
    (tmp_path / "b").mkdir()
    workers = 2 if metrics else 1
    assemble(sources, filters, 0.5, tmp_path / "b", "train", 9, workers, progress=progress.append)
    assert pairs(ShardReader(tmp_path / "b", "train")) == expected[0]
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert sum(progress) == 3 * (NUM_PAIRS - 1) and len(progress) == 13


@pytest.mark.parametrize(
    ("times", "count"), [(0.0, 0), (0.5, 20), (1.0, 40), (1.25, 50), (2.0, 80)]
)
def test_original_pairs_are_mixed_in(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer, times: float, count: int
) -> None:
    found: Found = {3: [("was", -1.0)]}
    written, summary = made(tmp_path / "a", reader, vocab, found, original=times)
    assert written[0] == labels(reader, vocab, [(3, "was")])[0]
    assert len(written) == 1 + count and summary.originals == count and summary.labels == 1
    originals = pairs(reader)
    numbers = [originals.index(pair) for pair in written[1:]]
    copies = np.bincount(numbers, minlength=NUM_PAIRS)
    assert set(copies) <= {int(times), int(np.ceil(times))}
    if times == 0.5:  # not all from one part of the text, nor every second
        assert 5 <= copies[:20].sum() <= 15 and 5 <= copies[::2].sum() <= 15
    again, _ = made(tmp_path / "b", reader, vocab, found, original=times)
    assert again == written


def test_where_nothing_is_left_nothing_is_written(
    tmp_path: Path, reader: ShardReader, vocab: SentencePieceTokenizer
) -> None:
    found: Found = {0: [("was", -2.0)], 1: [("", -1.0)]}
    with pytest.raises(UserError, match=r"not one of 2 .* 1 by empty, 1 by --min-score\); run the"):
        made(tmp_path, reader, vocab, found, Filters(min_score=-1.0))
    assert {path.name for path in tmp_path.iterdir()} == {"journal.0", "journal.1"}
    written, _ = made(tmp_path / "b", reader, vocab, found, Filters(min_score=-1.0), 1.0)
    assert written == pairs(reader)


@pytest.mark.parametrize("linked", [True, False])
def test_the_rest_is_taken_over(
    data: Path,
    tmp_path: Path,
    vocab: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    linked: bool,
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / ".valid.manifest.json.123.tmp").write_text("half a ")
    for _ in range(2):  # the second time over files that are already there
        copy_rest(data, tmp_path, "train", Tokenizers.shared(vocab), joint=True)
        valid = ShardReader(tmp_path, "valid", vocab.fingerprint)
        assert pairs(valid) == pairs(ShardReader(data, "valid"))
        names = {path.name for path in data.iterdir() if not path.name.startswith("train.")}
        assert {path.name for path in tmp_path.iterdir()} == names
        for name in names:
            assert (tmp_path / name).read_bytes() == (data / name).read_bytes()
    links = os.stat(tmp_path / "valid.manifest.json").st_nlink
    assert links == (2 if linked else 1)
