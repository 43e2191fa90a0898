"""Binarizing part by part: where parts begin, and what an interrupted call leaves to the next."""

from __future__ import annotations

import gzip
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ds_seq.data import parts
from ds_seq.data.binarize import BinarizeReport, CorpusText, binarize, binarize_corpora, is_current
from ds_seq.data.manifest import CorpusRecord
from ds_seq.data.parts import PartEncoder
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.text import scan
from ds_seq.text.forms import Table
from ds_seq.text.lines import PairPath, read_blocks, text_fingerprint
from ds_seq.text.plan import plan_text
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_LINES", 50)


@pytest.fixture
def text(corpus: Path) -> PairPath:
    return PairPath(corpus / "train.en", corpus / "train.de")


@pytest.fixture
def tokenizers(vocab: SentencePieceTokenizer) -> Tokenizers:
    return Tokenizers.shared(vocab)


@pytest.fixture
def made(tokenizers: Tokenizers) -> partial[BinarizeReport]:
    return partial(binarize, tokenizers, split="train", languages=("en", "de"), shard_size=80)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(pairs: int, done: list[int]) -> None:
    """Progress that interrupts like Ctrl-C."""
    done.append(pairs)
    if len(done) == 3:
        raise KeyboardInterrupt


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of the parts that are written in the block."""
    numbers: list[int] = []
    write = PartEncoder._write

    def counting(self: PartEncoder, part: parts.Part, *rest: object) -> None:
        numbers.append(part.number)
        write(self, part, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PartEncoder, "_write", counting)
        yield numbers


@pytest.mark.parametrize("content", [b"", b"a", b"a\n", b"\n\n", b"ab\ncd\r\ne", b"x\n" * 40])
@pytest.mark.parametrize("part_lines", [1, 2, 3, 7])
def test_parts_begin_where_their_lines_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, part_lines: int
) -> None:
    path = PairPath(tmp_path / "a", tmp_path / "a")
    path.source.write_bytes(content)
    for block in (1, 3, 1000):
        monkeypatch.setattr(scan, "BLOCK", block)
        plan = plan_text(part_lines, path)
        blocks = list(read_blocks([path], part_lines))
        assert plan.num_parts == len(blocks) and plan.offsets is not None
        assert plan.lines == sum(len(lines.source) for lines in blocks)
        ends = plan.offsets[0]
        found = [content[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        assert [
            [line.rstrip(b"\r") for line in lines.removesuffix(b"\n").split(b"\n")]
            for lines in found
        ] == [lines.source for lines in blocks]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_call_is_continued_by_any_number_of_processes(
    text: PairPath,
    made: partial[BinarizeReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    made(*text, tmp_path / "whole")
    folder, done = tmp_path / "again", list[int]()
    with pytest.raises(KeyboardInterrupt):
        made(*text, folder, progress=partial(stop_after, done=done))
    assert [path.name for path in folder.iterdir()] == [".train.parts"], "no torn file"
    torn = folder / ".train.parts" / "000001.part"
    torn.write_bytes(torn.read_bytes()[:-1])
    with counted(monkeypatch) as numbers:
        report = made(*text, folder, workers=workers)
    assert workers > 1 or numbers == [1, 3, 4, 5]
    assert snapshot(folder) == snapshot(tmp_path / "whole")
    assert report.manifest.pairs == 300


def test_parts_of_another_text_are_not_used(
    text: PairPath, made: partial[BinarizeReport], tmp_path: Path
) -> None:
    folder, done = tmp_path / "again", list[int]()
    with pytest.raises(KeyboardInterrupt):
        made(*text, folder, progress=partial(stop_after, done=done))
    made(text.target, text.source, folder)
    made(text.target, text.source, tmp_path / "whole")
    assert snapshot(folder) == snapshot(tmp_path / "whole")


def test_compressed_text_gives_the_same_shards(
    text: PairPath, made: partial[BinarizeReport], tmp_path: Path
) -> None:
    packed = PairPath(tmp_path / "a.gz", tmp_path / "b.gz")
    for plain, path in zip(text, packed, strict=True):
        path.write_bytes(gzip.compress(plain.read_bytes()))
    for workers in (1, 2):
        made(*packed, tmp_path / str(workers), workers=workers)
    made(*text, tmp_path / "plain")
    expected = snapshot(tmp_path / "plain")
    for workers in (1, 2):
        shards = snapshot(tmp_path / str(workers))
        assert {name for name in shards if shards[name] != expected[name]} == {
            "train.manifest.json"  # which records the checksums of the text
        }


def test_a_full_disk_keeps_what_is_finished(
    text: PairPath, made: partial[BinarizeReport], tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    made(*text, tmp_path / "whole", shard_size=300)
    largest = max(len(content) for content in snapshot(tmp_path / "whole").values())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a part fits, a shard does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
        with pytest.raises(UserError, match=r"cannot be written: .* is kept in .*\.train\.parts"):
            made(*text, folder, shard_size=300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in folder.iterdir()] == [".train.parts"]
    assert len(list((folder / ".train.parts").glob("*.part"))) > 1
    made(*text, folder, shard_size=300)
    assert snapshot(folder) == snapshot(tmp_path / "whole")


def test_corpora_are_binarized_in_order(
    corpus: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    train = PairPath(corpus / "train.en", corpus / "train.de")
    back = PairPath(corpus / "valid.de", corpus / "valid.en")
    texts = [CorpusText("web", train, ("en", "de")), CorpusText("back", back, ("de", "en"))]
    options = {"languages": ("en", "de"), "shard_size": 80}
    binarize_corpora(tokenizers, texts, tmp_path, "train", **options)  # type: ignore[arg-type]
    reader = ShardReader(tmp_path, "train")
    assert [(corpus.name, corpus.rows, corpus.languages) for corpus in reader.corpora] == [
        ("web", range(300), ("en", "de")),
        ("back", range(300, 320), ("de", "en")),
    ]
    first = back.source.read_text(encoding="utf-8").split("\n")[0]
    assert tokenizers.source.decode(reader[300][0].tolist()) == first
    assert is_current(tmp_path, "train", tokenizers, texts, 80)
    for other in (texts[:1], texts[::-1], [texts[0], texts[1]._replace(name="old")]):
        assert not is_current(tmp_path, "train", tokenizers, other, 80)
    assert not is_current(tmp_path, "train", tokenizers, texts, 79)


@pytest.mark.parametrize("part_lines", [1000, 130, 60])
def test_corpora_of_one_text_begin_in_a_part(
    corpus: Path,
    tokenizers: Tokenizers,
    tmp_path: Path,
    part_lines: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "PART_LINES", part_lines)
    text = PairPath(corpus / "train.en", corpus / "train.de")
    records = [
        CorpusRecord("web", 0, 130, ("en", "de")),
        CorpusRecord("news", 130, 5, ("en", "de")),
        CorpusRecord("back", 135, 165, ("de", "en")),
    ]
    options = {"languages": ("en", "de"), "shard_size": 80}
    binarize(tokenizers, *text, tmp_path, "named", **options, corpora=records)  # type: ignore[arg-type]
    binarize(tokenizers, *text, tmp_path, "plain", **options)  # type: ignore[arg-type]
    named, plain = ShardReader(tmp_path, "named"), ShardReader(tmp_path, "plain")
    assert list(named.corpora) == records
    assert [shard.pairs for shard in named.manifest.shards] == [80, 50, 5, 80, 80, 5]
    every = np.arange(300)
    for one, other in zip(named.gather(every), plain.gather(every), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
    assert is_current(tmp_path, "named", tokenizers, text, 80, records)
    assert is_current(tmp_path, "plain", tokenizers, text, 80, records), "only names are missing"
    assert not is_current(tmp_path, "named", tokenizers, text, 80, records[1:])


def test_an_empty_corpus_is_named(text: PairPath, tokenizers: Tokenizers, tmp_path: Path) -> None:
    empty = PairPath(tmp_path / "a", tmp_path / "b")
    for side in empty:
        side.touch()
    texts = [CorpusText("web", text, ("en", "de")), CorpusText("none", empty, ("en", "de"))]
    with pytest.raises(UserError, match="a: corpus 'none' is empty"):
        binarize_corpora(
            tokenizers, texts, tmp_path / "out", "train", languages=("a", "b"), shard_size=9
        )
    assert not (tmp_path / "out").exists()


def test_a_byte_order_mark_is_no_part_of_the_text(
    text: PairPath, made: partial[BinarizeReport], tmp_path: Path
) -> None:
    marked = PairPath(tmp_path / "a", tmp_path / "b")
    for path, other in zip(text, marked, strict=True):
        other.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    plan = plan_text(7, marked)
    assert plan.sha256 == tuple(map(text_fingerprint, marked))
    assert plan.offsets is not None and plan.offsets[0][0] == 3
    made(*marked, tmp_path / "marked")
    made(*text, tmp_path / "plain")
    for path in (tmp_path / "plain").glob("*.bin"):
        assert path.read_bytes() == (tmp_path / "marked" / path.name).read_bytes()


def test_parts_of_a_table_are_those_of_its_sides(
    text: PairPath, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    sides = [path.read_bytes().splitlines() for path in text]
    rows = [b"%s\t%s\n" % pair for pair in zip(*sides, strict=True)]
    path = tmp_path / "x.tsv"
    path.write_bytes(b"".join(rows))
    found = []
    for number, each in enumerate((text, PairPath(path, path, Table((1, 2), header=False)))):
        work = tmp_path / str(number)
        work.mkdir()
        encoder = PartEncoder(tokenizers, [plan_text(50, each)], work)
        for place in (3, 1):
            encoder.make(parts.Part(place, 0, place))
        found.append(snapshot(work))
    assert found[0] == found[1] and len(found[0]) == 2
