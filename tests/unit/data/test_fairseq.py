"""fairseq's binary files: read as fairseq reads them, written byte for byte, damage named."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ds_seq.cli import main
from ds_seq.config.load import read_experiment
from ds_seq.data.alignments import AlignmentReader, are_current
from ds_seq.data.fairseq import FairseqSource
from ds_seq.data.fairseq_files import TYPES, IndexedFile
from ds_seq.data.fairseq_write import indexed_writer
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from ds_seq.text.build import load_tokenizers
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.data.fairseq import data_section, write_recorded

PAIR = ("en", "de")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fairseq-preprocess wrote; not to be written to."""
    folder = tmp_path_factory.mktemp("fairseq")
    write_recorded(folder)
    return folder


def experiment(folder: Path, name: str, out: Path, **data: object) -> dict[str, object]:
    return {
        "name": "x",
        "data": data_section(folder, name, out, **data),
        "model": {"share_embeddings": "all" if name == "spm" else "decoder"},
        "validation": {"metrics": [], "best": "loss"},
    }


def opened(folder: Path, name: str, out: Path) -> FairseqSource:
    """The training pairs of a recorded folder, with the vocabulary that `prepare` makes."""
    config = experiment(folder, name, out)
    (out.parent / f"{name}.yaml").write_text(json.dumps(config))
    assert main(["prepare", str(out.parent / f"{name}.yaml")]) == 0
    data = read_experiment(config).data
    return FairseqSource([folder / name], "train", PAIR, load_tokenizers(data, out))


def sentences(block: TokenBlock) -> list[list[int]]:
    return [part.tolist() for part in np.split(block.tokens, np.cumsum(block.lengths)[:-1])]


def test_text_split_by_our_tokenizer_is_what_fairseq_binarized(made: Path, tmp_path: Path) -> None:
    for name in ("bpe", "spm"):
        source = opened(made, name, tmp_path / name)
        data = read_experiment(experiment(made, name, tmp_path / name)).data
        tokenizers = load_tokenizers(data, tmp_path / name)
        blocks = source.gather(np.arange(len(source)))
        for language, tokenizer, block in zip(PAIR, tokenizers, blocks, strict=True):
            lines = (made / f"text.{language}").read_text(encoding="utf-8").split("\n")[:-1]
            assert sentences(block) == [[*tokenizer.encode(line), 2] for line in lines]


def test_the_old_format_holds_the_same_sentences(made: Path, tmp_path: Path) -> None:
    new, old = (opened(made, name, tmp_path / name) for name in ("bpe", "cached"))
    rows = np.array([3, 0, 27, 3])
    assert np.array_equal(new.lengths, old.lengths)
    for one, other in zip(new.gather(rows), old.gather(rows), strict=True):
        assert sentences(one) == sentences(other)
    assert new.fingerprint != old.fingerprint


@pytest.mark.parametrize("code", sorted(set(TYPES) - {6}))
def test_every_type_of_a_token_is_read(made: Path, code: int) -> None:
    file = IndexedFile(made / "types" / TYPES[code].name)
    assert sentences(file.gather(np.array([1, 0, 1]))) == [[100, 2], [5, 9, 2], [100, 2]]


def test_a_file_is_written_as_fairseq_writes_it(made: Path, tmp_path: Path) -> None:
    for vocab_size, name in ((1000, "uint16"), (65_499, "uint16"), (65_500, "uint32")):
        with indexed_writer(tmp_path / name, vocab_size) as writer:
            writer.add(TokenBlock.of([[5, 9, 2]]))
            writer.add(TokenBlock.of([[100, 2]]))
        for suffix in (".bin", ".idx"):
            expected = (made / "types" / f"{name}{suffix}").read_bytes()
            assert (tmp_path / f"{name}{suffix}").read_bytes() == expected
    with pytest.raises(RuntimeError), indexed_writer(tmp_path / "torn", None) as writer:
        raise RuntimeError
    assert not list(tmp_path.glob("*torn*"))


@pytest.mark.parametrize("name", ["bpe", "spm"])
def test_there_and_back_every_byte_is_the_same(made: Path, tmp_path: Path, name: str) -> None:
    file, back = tmp_path / "x.yaml", tmp_path / "back"
    file.write_text(json.dumps(experiment(made, name, tmp_path / "data", shard_size=10)))
    command = ["convert-data", str(file)]
    assert main([*command, "--from-fairseq", f"{made}/{name}"]) == 0
    assert main([*command, "--to-fairseq", str(back)]) == 0
    kept = list((made / name).iterdir())  # with alignments, if there are any
    assert {path.name for path in back.iterdir() if path.name[0] != "."} == {p.name for p in kept}
    for path in kept:
        assert (back / path.name).read_bytes() == path.read_bytes()
    data = read_experiment(experiment(made, name, tmp_path / "data")).data
    tokenizers = load_tokenizers(data, data.dir)
    reader = ShardReader(data.dir, "train", tokenizers.fingerprint)
    task = build_task(read_experiment(experiment(made, name, tmp_path / "data")).task, data)
    dataset = task.dataset("train")
    assert np.array_equal(dataset.lengths, reader.lengths)  # train reads either


def test_alignments_come_along(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "spm", tmp_path / "spm")
    for side in ("en", "de"):  # a second part, of the opposite direction, and a third without
        for part, pair in (("train1", "de-en"), ("train2", "en-de")):
            for suffix in ("bin", "idx"):
                old = tmp_path / "spm" / f"train.en-de.{side}.{suffix}"
                shutil.copy(old, tmp_path / "spm" / f"{part}.{pair}.{side}.{suffix}")
    for suffix in ("bin", "idx"):
        old = tmp_path / "spm" / f"train.align.en-de.{suffix}"
        shutil.copy(old, tmp_path / "spm" / f"train1.align.de-en.{suffix}")
    file, out = tmp_path / "x.yaml", tmp_path / "data"
    file.write_text(json.dumps(experiment(made, "spm", out)))
    command = ["convert-data", str(file), "--from-fairseq", str(tmp_path / "spm")]
    assert main(command) == 0
    shards = ShardReader(out, "train")
    found = AlignmentReader(out, "train", shards).gather(np.arange(len(shards)))
    lines = (made / "spm.align").read_text().splitlines()
    for number, line in enumerate(lines):
        links = [list(map(int, link.split("-"))) for link in line.split()]
        assert found[number].tolist() == links
        assert found[number + 28].tolist() == [link[::-1] for link in links]
        assert found[number + 56].tolist() == []
    with indexed_writer(tmp_path / "spm" / "train2.align.en-de", None) as writer:
        writer.add(TokenBlock.of([[900, 0]] * 28))
    assert main(command) == 2 and not (out / "train.align.json").exists()
    assert not are_current(out, "train", shards)


def test_our_vocabulary_goes_through_fairseq_and_back(
    vocab: SentencePieceTokenizer, shards: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    shards = Path(shutil.copytree(shards, tmp_path / "shards"))
    vocab.save(shards / "vocab.model")
    data = {"source_lang": "en", "target_lang": "de", "dir": str(shards)}
    file = tmp_path / "x.yaml"
    file.write_text(
        json.dumps({"name": "x", "data": data, "validation": {"metrics": [], "best": "loss"}})
    )
    assert main(["convert-data", str(file), "--to-fairseq", str(there)]) == 0
    reader = ShardReader(shards, "train", vocab.fingerprint)
    source = FairseqSource([there], "train", PAIR, Tokenizers.shared(vocab))
    rows = np.arange(len(reader))
    for one, other in zip(reader.gather(rows), source.gather(rows), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
    lines = (there / "dict.en.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[0] for line in lines] == vocab.pieces(range(4, len(vocab)))
    tokens = np.concatenate([block.tokens for block in reader.gather(rows)])
    counts = np.bincount(tokens, minlength=len(vocab))[4:]
    assert [int(line.split(" ")[1]) for line in lines] == counts.tolist()
    assert (there / "dict.de.txt").read_bytes() == (there / "dict.en.txt").read_bytes()
    out = tmp_path / "again"
    out.mkdir()
    vocab.save(out / "vocab.model")
    # a copied vocabulary whose record is damaged; there is no text to train one for comparison
    (out / "vocab.json").write_text("{")
    arguments = ["--from-fairseq", str(there), f"data.dir={out}", "data.shard_size=80"]
    assert main(["convert-data", str(file), *arguments]) == 0
    for path in shards.glob("train.0*"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_parts_and_folders_follow_each_other(vocab: SentencePieceTokenizer, tmp_path: Path) -> None:
    words = "".join(f"{piece} 1\n" for piece in vocab.pieces(range(4, len(vocab))))
    expected = []
    for number, (folder, part) in enumerate(
        (("a", "train"), ("a", "train1"), ("a", "train2"), ("b", "train"))
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        for language in PAIR:
            (tmp_path / folder / f"dict.{language}.txt").write_text(words, encoding="utf-8")
            prefix = f"{part}.{'de-en' if folder == 'b' else 'en-de'}.{language}"
            with indexed_writer(tmp_path / folder / prefix, len(vocab)) as writer:
                writer.add(TokenBlock.of([[10 + number, 2], [20 + number, 4, 2]]))
        expected += [[10 + number, 2], [20 + number, 4, 2]]
    for language in PAIR:
        for split in ("valid", "valid1", "train4"):  # parts of `train` end before 3
            with indexed_writer(tmp_path / "a" / f"{split}.en-de.{language}", len(vocab)) as writer:
                writer.add(TokenBlock.of([[9, 2]]))
    folders = [tmp_path / "a", tmp_path / "b"]
    source = FairseqSource(folders, "train", PAIR, Tokenizers.shared(vocab))
    rows = np.array([7, 0, 5, 2, 2, 6])
    for block in source.gather(rows):
        assert sentences(block) == [expected[row] for row in rows]
    assert sentences(source.gather(np.array([4]))[0]) == [expected[4]]
    assert len(FairseqSource(folders, "valid", PAIR, Tokenizers.shared(vocab))) == 1
    (tmp_path / "b" / "dict.de.txt").write_text("x 1\n")
    with pytest.raises(UserError, match=r"b/dict.de.txt: differs from .*a/dict.de.txt"):
        FairseqSource(folders, "train", PAIR, Tokenizers.shared(vocab))
    with pytest.raises(UserError, match=r"c: no such folder"):
        FairseqSource([*folders, tmp_path / "c"], "train", PAIR, Tokenizers.shared(vocab))
    with pytest.raises(UserError, match=r"b: has no train.en-fr.en.idx"):
        FairseqSource([folders[1]], "train", ("en", "fr"), Tokenizers.shared(vocab))


def test_opening_reads_no_tokens(made: Path, tmp_path: Path) -> None:
    """Of a `.bin` with holes only the pages that are asked for exist afterwards."""
    count, length = 1000, 1 << 20
    index = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 5, count)
    sizes = np.full(count, length, "<i4")
    starts = np.arange(count, dtype="<i8") * length * 8
    (tmp_path / "x.idx").write_bytes(index + sizes.tobytes() + starts.tobytes())
    with open(tmp_path / "x.bin", "wb") as file:
        file.truncate(count * length * 8)  # 8 GB, none of which is on the disk
    file = IndexedFile(tmp_path / "x")
    assert len(file) == count and (file.gather(np.array([999])).tokens == 0).all()
    assert file.fingerprint != ""


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _fill(path: Path) -> None:
    path.write_bytes(b"\4\0" * (path.stat().st_size // 2))


def _replace(place: int, content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        whole = bytearray(path.read_bytes())
        whole[place : place + len(content)] = content
        path.write_bytes(whole)

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train.en-de.de.bin", _cut, r"train.en-de.de.bin: has \d+,?\d* bytes, but sentences up"),
        ("train.en-de.de.bin", Path.unlink, r"train.en-de.de.bin: no such file"),
        ("train.en-de.de.idx", _cut, r"train.en-de.de.idx: has \d+ bytes, but 28 sentences take"),
        ("train.en-de.de.idx", _replace(0, b"MMIDIDZ"), r"de.idx: is no index of fairseq"),
        ("train.en-de.de.idx", _replace(0, b"HUFFIDX"), r"de.idx: is a Huffman code"),
        ("train.en-de.de.idx", _replace(9, b"\x07"), r"de.idx: is damaged \(its version is 7"),
        ("train.en-de.de.idx", _replace(17, b"\x63"), r"names the token type 99"),
        ("train.en-de.de.idx", _replace(29, b"\xff"), r"de.idx: is damaged \(a length is negative"),
        ("train.en-de.de.idx", lambda p: p.write_bytes(b"MMIDIDX\0\0"), r"has only 9 bytes"),
        ("train.en-de.de.idx", lambda p: p.write_bytes(b""), r"de.idx: is no index of fairseq"),
        ("train.en-de.de.bin", _replace(0, b"\xff\x7f"), r"holds the id 32,767, but .*dict.de.txt"),
        ("train.en-de.de.bin", _fill, r"de.bin: a sentence does not end with the end symbol"),
        ("dict.de.txt", Path.unlink, r"dict.de.txt: no such file; fairseq-preprocess writes"),
        ("dict.de.txt", _replace(0, b"zz"), r"dict.de.txt: 1 of 96 symbols .* not in the vocab"),
    ],
)
def test_damage_is_named_in_one_line(
    made: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(made / "bpe", tmp_path / "bpe")
    shutil.copy(made / "codes", tmp_path / "codes")
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(experiment(made, "bpe", tmp_path / "data")))
    damage(tmp_path / "bpe" / name)
    capsys.readouterr()
    assert main(["convert-data", str(file), "--from-fairseq", str(tmp_path / "bpe")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "converting" not in line]
    assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert not list((tmp_path / "data").glob("*.manifest.json"))


def test_arguments_that_make_no_sense_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "x.yaml", tmp_path / "data"
    file.write_text(json.dumps(experiment(made, "bpe", out)))
    command = ["convert-data", str(file)]
    for arguments, message in (
        (["--to-fairseq", str(tmp_path / "no")], "vocab.source.model: no such vocabulary"),
        (["--from-fairseq", str(out)], "is data.dir, too; give it another folder"),
        (["--from-fairseq", str(tmp_path / "no")], "no: no such folder"),
        (["--from-fairseq", f"{made}/bpe", "--languages", "en", "fr"], "has no train.en-fr.en.idx"),
        (["--to-fairseq", str(made), "--languages", "en", "de"], "applies to --from-fairseq only"),
        ([], "one of the arguments --from-fairseq --to-fairseq is required"),
    ):
        capsys.readouterr()
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--from-fairseq", f"{made}/bpe"]) == 0
    assert main([*command, "--to-fairseq", str(made)]) == 2
    assert f"{made}: exists already and is not empty" in capsys.readouterr().err


def test_a_vocabulary_of_another_kind_must_be_copied(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(made, "spm", tmp_path / "data", vocab={"size": 112})
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(config))
    command = ["convert-data", str(file), "--from-fairseq", f"{made}/spm"]
    assert main(command) == 2
    assert "vocab.model: missing: copy the vocabulary with which" in capsys.readouterr().err
    (tmp_path / "data").mkdir(exist_ok=True)
    shutil.copy(made / "spm.model", tmp_path / "data" / "vocab.model")
    assert main(command) == 0
    data = read_experiment(config).data
    tokenizers = load_tokenizers(data, data.dir)
    reader = ShardReader(data.dir, "train", tokenizers.fingerprint)
    text = (made / "text.de").read_text(encoding="utf-8").split("\n")
    assert reader[4][1].tolist() == [*tokenizers.target.encode(text[4]), 2]
    other = SentencePieceTokenizer.load(made / "spm.model")
    assert other.pieces([9]) == tokenizers.target.pieces([9])
