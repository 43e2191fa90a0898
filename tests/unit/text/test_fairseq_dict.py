"""Vocabularies of fairseq: dictionaries, merges, and text that becomes ids as in fairseq."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_seq.config.data import DataConfig
from ds_seq.errors import UserError
from ds_seq.text.build import read_tokenizers
from ds_seq.text.fairseq_dict import Dictionary, dictionary_bytes, id_map, symbol_ids
from ds_seq.text.fairseq_tokenizer import FairseqDictTokenizer
from ds_seq.text.merges import Merges
from ds_seq.text.normalize import Normalizer
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.characters import CharacterTokenizer
from tests.data.fairseq import dictionary_size, write_recorded

PLAIN = Normalizer(nfkc=False, fold_spaces=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fairseq")
    write_recorded(folder)
    return folder


def tokenizer(folder: Path, name: str, **options: Any) -> FairseqDictTokenizer:
    file = folder / ("spm" if name == "spm" else "bpe") / "dict.en.txt"
    own = {"sentencepiece": folder / "spm.model"} if name == "spm" else {"codes": folder / "codes"}
    size = options.pop("size", dictionary_size(file))
    return FairseqDictTokenizer.train(
        [], size=size, dictionary=file, **own, **{"moses": False, **options}
    )


@pytest.mark.parametrize("name", ["bpe", "spm", "moses"])
def test_lines_have_the_ids_and_the_text_of_fairseq(folder: Path, name: str) -> None:
    probes = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    answers = json.loads((folder / "encoded.json").read_text(encoding="utf-8"))[name]
    vocab = tokenizer(folder, name, moses=name == "moses")
    for line, answer in zip(probes, answers, strict=True):
        assert vocab.encode(line) == answer["ids"]
        assert vocab.decode(answer["ids"]) == answer["text"]
    assert vocab.encode_lines(probes) == [answer["ids"] for answer in answers]


def test_a_vocabulary_is_restored_from_its_bytes(folder: Path) -> None:
    vocab = tokenizer(folder, "bpe", user_symbols=["the"])
    for again in (
        FairseqDictTokenizer.from_bytes(vocab.to_bytes(), name="v"),
        pickle.loads(pickle.dumps(vocab)),
    ):
        assert again.fingerprint == vocab.fingerprint and again.tag_ids == vocab.tag_ids
        assert again.encode("the house") == vocab.encode("the house")
    assert vocab.fingerprint != tokenizer(folder, "bpe").fingerprint
    assert vocab.dictionary_bytes == (folder / "bpe" / "dict.en.txt").read_bytes()
    with pytest.raises(UserError, match=r"^v.model: is damaged .*; make it again"):
        FairseqDictTokenizer.from_bytes(b"{}", name="v.model")


def test_special_symbols_in_a_text_are_unknown_text(folder: Path) -> None:
    for name in ("bpe", "spm"):
        vocab = tokenizer(folder, name)
        assert {0, 1, 2}.isdisjoint(vocab.encode("a </s> b <pad> c <s>"))
        assert vocab.decode([0, *vocab.encode("a house"), 2, 1]) == "a house"
        assert "<unk>" in vocab.decode([vocab.symbols.unk])


def test_unknown_pieces_are_spelled_out(folder: Path) -> None:
    vocab = tokenizer(folder, "bpe")
    (pieces,) = vocab.split_lines(["the ☺X"])
    assert vocab.join(pieces) == "the ☺X" and "".join(pieces).endswith("☺@@X")
    assert vocab.symbols.unk in vocab.encode("the ☺X")


def test_a_user_symbol_is_never_split_and_comes_first(tmp_path: Path) -> None:
    (tmp_path / "dict").write_text("<2de> 5\na 3\nb 2\nmadeupword0000 0\n")
    (tmp_path / "codes").write_text("#version: 0.2\n")
    vocab = FairseqDictTokenizer.train(
        [],
        size=8,
        user_symbols=["<2de>"],
        dictionary=tmp_path / "dict",
        codes=tmp_path / "codes",
        moses=True,
    )
    assert vocab.encode("<2de> a b") == [4, 5, 6] and vocab.tag_ids == {4}
    assert vocab.for_side("de", is_source=False).encode("<2de> a") == [4, 5]
    assert vocab.for_side("de", is_source=False).fingerprint == vocab.fingerprint
    with pytest.raises(UserError, match=r"user_symbols: <2fr> is not in the dictionary"):
        FairseqDictTokenizer.train(
            [], size=8, user_symbols=["<2fr>"], dictionary=tmp_path / "dict", moses=False
        )


def test_each_side_of_a_joint_vocabulary_has_the_rules_of_its_language(folder: Path) -> None:
    vocab = tokenizer(folder, "bpe", moses=True)
    own = {"dictionary": "d", "codes": "c", "moses": True}
    data = DataConfig.model_validate(
        {
            "source_lang": "fr",
            "target_lang": "en",
            "dir": "d",
            "vocab": {"name": "fairseq_dict", "size": len(vocab), "fairseq": own},
        }
    )
    pair = read_tokenizers(data, [vocab.to_bytes()], ["v"])
    assert pair.fingerprint == vocab.fingerprint
    assert pair.source.split_lines(["l'a"]) != pair.target.split_lines(["l'a"])


@pytest.mark.parametrize(
    ("codes", "word", "pieces"),
    [
        ("#version: 0.2\na b\nab c</w>\n", "abc", ["abc"]),
        ("#version: 0.2\na b\nab c</w>\n", "abcabc", ["ab@@", "c@@", "abc"]),
        ("#version: 0.2\nb c\na b\n", "abc", ["ab@@", "c"]),  # the last one is `c</w>`
        ("a b\nab c\nc </w>\n", "abc", ["abc"]),
        ("c </w>\na b\n", "abc", ["ab@@", "c"]),
        ("a a 12\naa a</w> 5\n", "aaa", ["aaa"]),
        ("#version: 0.2\na a\n", "aaaaa", ["aa@@", "aa@@", "a"]),
    ],
)
def test_merges_are_applied_in_their_order(codes: str, word: str, pieces: list[str]) -> None:
    assert Merges(codes.encode(), "codes").split(word) == pieces


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#version: 0.2\na b\na b c d\n", r"^codes: line 3: 'a b c d' is not a merge"),
        (b"#version: 0.2\na\n", r"^codes: line 2: 'a' is not a merge"),
        (b"a b\n\xff b\n", r"^codes: line 2: invalid UTF-8"),
    ],
)
def test_damaged_merges_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Merges(content, "codes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 3\nb 2\na 1\n", r"^d: line 3: 'a' is in the dictionary already; remove one"),
        (b"</s> 3\n", r"^d: line 1: '</s>' is in the dictionary already"),
        (b"a 3\nb\n", r"^d: line 2: 'b' is not a symbol, a space and its count"),
        (b"a x\n", r"^d: line 1: 'a x' is not a symbol"),
        (b"", r"^d: line 1: '' is not a symbol"),
        (b"a 1\n\xe9 2\n", r"^d: line 2: invalid UTF-8"),
    ],
)
def test_damaged_dictionaries_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dictionary.parse(content, "d")


def test_a_symbol_may_replace_an_earlier_one() -> None:
    found = Dictionary.parse(b"a 3\nb c 2\na 1 #fairseq:overwrite\n", "d")
    assert found.symbols[4:] == ("a", "b c", "a") and found.ids["a"] == 6


def test_files_that_do_not_go_together_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.vocab.size: 90, but .*dict.en.txt has \d+ symbols"):
        tokenizer(folder, "bpe", size=90)
    (tmp_path / "model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model: is not a SentencePiece model"):
        FairseqDictTokenizer.train(
            [],
            size=dictionary_size(folder / "spm/dict.en.txt"),
            dictionary=folder / "spm/dict.en.txt",
            sentencepiece=tmp_path / "model",
            moses=False,
        )


def test_special_symbols_are_mapped_by_their_meaning() -> None:
    ours = CharacterTokenizer(["[end]", "[pad]", "[unk]", "a", "b"], 0, PLAIN)  # no `<s>`
    found = Dictionary.parse(b"b 3\na 1\nmadeupword0000 0\n", "d")
    table = id_map(found, ours, "d")
    assert table is not None and table.tolist() == [-1, 1, 0, 2, 4, 3, -1]
    written = symbol_ids(ours)
    assert written.tolist() == [-1, 1, 0, 2, 3, 4]
    content = dictionary_bytes(ours.pieces(written[4:].tolist()), [7, 8], "v")
    assert Dictionary.parse(content, "d").symbols[4:] == ("a", "b")
    with pytest.raises(UserError, match=r"^d: 1 of 5 symbols \('z'\) are not in the vocabulary"):
        id_map(Dictionary.parse(b"z 1\n", "d"), ours, "d")


def test_a_dictionary_of_our_pieces_keeps_every_id(vocab: SentencePieceTokenizer) -> None:
    pieces = vocab.pieces(range(4, len(vocab)))
    found = Dictionary.parse(dictionary_bytes(pieces, [1] * len(pieces), "v"), "d")
    assert id_map(found, vocab, "d") is None
    assert np.array_equal(symbol_ids(vocab), np.arange(len(vocab)))


@pytest.mark.parametrize("symbol", ["", "a b", "</s>", "x", "\tx"])
def test_symbols_that_fairseq_cannot_read_are_refused(symbol: str) -> None:
    with pytest.raises(UserError, match=r"^v: the symbol .* so fairseq cannot read it"):
        dictionary_bytes(["x", symbol], [1, 1], "v")
