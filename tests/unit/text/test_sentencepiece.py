"""The vocabulary: special symbols, round trip, determinism, messages."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import sentencepiece as spm

from ds_seq.errors import UserError
from ds_seq.generation.output import plain_text
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.vocabulary import train_vocab


def test_special_symbols_have_the_ids_of_fairseq(vocab: SentencePieceTokenizer) -> None:
    ids = [vocab.symbols.bos, vocab.symbols.pad, vocab.symbols.eos, vocab.symbols.unk]
    assert ids == [0, 1, 2, 3]
    assert vocab.pieces(ids) == ["<s>", "<pad>", "</s>", "<unk>"]


def test_text_survives_encoding(vocab: SentencePieceTokenizer, corpus: Path) -> None:
    lines = (corpus / "valid.de").read_text(encoding="utf-8").splitlines()
    assert [vocab.decode(vocab.encode(line)) for line in lines] == lines
    assert vocab.encode_lines(lines) == [vocab.encode(line) for line in lines]


def test_decoding_skips_special_symbols_but_shows_unknown_ones(
    vocab: SentencePieceTokenizer,
) -> None:
    ids = vocab.encode("the man")
    assert vocab.decode([0, *ids, 2, 1, 1]) == "the man"
    assert vocab.symbols.unk in vocab.encode("漢")
    assert "⁇" in vocab.decode(vocab.encode("漢"))


def test_hash_distinguishes_models_and_survives_copies(
    vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    vocab.save(tmp_path / "copy.model")
    assert SentencePieceTokenizer.load(tmp_path / "copy.model").fingerprint == vocab.fingerprint
    assert pickle.loads(pickle.dumps(vocab)).fingerprint == vocab.fingerprint
    (tmp_path / "text").write_text("other words altogether\n")
    assert (
        train_vocab([tmp_path / "text"], tmp_path / "other.model", 16).fingerprint
        != vocab.fingerprint
    )


def test_sample_depends_on_the_seed_alone(corpus: Path, tmp_path: Path) -> None:
    def train(seed: int) -> str:
        return train_vocab(
            [corpus / "train.en"], tmp_path / "m", 60, input_sentence_size=40, seed=seed
        ).fingerprint

    assert train(1) == train(1)
    assert len({train(seed) for seed in range(1, 5)}) > 1


def test_user_symbols_are_never_split(corpus: Path, tmp_path: Path) -> None:
    vocab = train_vocab([corpus / "train.en"], tmp_path / "m", 80, user_symbols=["<2de>"])
    assert "<2de>" in vocab.pieces(vocab.encode("<2de> the man"))


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tagged(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> SentencePieceTokenizer:
    """A vocabulary with two user symbols."""
    path = tmp_path_factory.mktemp("tagged") / "m"
    return train_vocab([corpus / "train.en"], path, 80, request.param, user_symbols=["<2de>", "#x"])


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("<2de> the man", "<2de>"),
        ("<2de>the man", "<2de>"),
        ("  <2de> x", "<2de>"),
        ("<2de>", "<2de>"),
        ("#x <2de>", "#x"),
    ],
)
def test_a_user_symbol_that_opens_a_line_is_its_first_id(
    tagged: SentencePieceTokenizer, text: str, symbol: str
) -> None:
    ids = tagged.encode(text)
    assert tagged.pieces(ids[:1]) == [symbol]
    assert ids[0] in tagged.tag_ids
    assert tagged.decode(ids) == text.strip()
    assert tagged.encode_lines([text, "the man", text]) == [ids, tagged.encode("the man"), ids]


@pytest.mark.parametrize("text", ["the <2de> man", "the man", "", "漢<2de>", "2de>"])
def test_other_lines_are_encoded_as_ever(
    tagged: SentencePieceTokenizer, text: str, tmp_path: Path
) -> None:
    tagged.save(tmp_path / "m")
    plain = spm.SentencePieceProcessor(model_file=str(tmp_path / "m"))
    assert tagged.encode(text) == plain.EncodeAsIds(text) == tagged.encode_lines([text])[0]


def test_the_rest_of_a_tagged_line_is_encoded_as_without_its_tag(
    tagged: SentencePieceTokenizer,
) -> None:
    ids = tagged.encode("<2de> the man sees")
    assert ids[1:] == tagged.encode("the man sees")


def test_user_symbols_are_known_by_their_ids(
    tagged: SentencePieceTokenizer, vocab: SentencePieceTokenizer
) -> None:
    assert set(tagged.pieces(sorted(tagged.tag_ids))) == {"<2de>", "#x"}
    assert pickle.loads(pickle.dumps(tagged)).tag_ids == tagged.tag_ids
    assert vocab.tag_ids == frozenset()


def test_without_user_symbols_no_line_costs_anything(
    vocab: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SentencePieceTokenizer, "_symbol_first")
    assert len(vocab.encode_lines(["the man", "the woman"])) == 2


def test_shards_made_when_symbols_were_not_yet_first_are_refused(
    tagged: SentencePieceTokenizer, vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    for made, kept in ((vocab, True), (tagged, False)):
        made.save(tmp_path / "m")
        old_hash = hashlib.sha256((tmp_path / "m").read_bytes()).hexdigest()
        assert (made.fingerprint == old_hash) == kept


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(("size", "advice"), [(50_000, "at most"), (9, "more than")])
def test_impossible_size_names_the_key(
    corpus: Path, tmp_path: Path, model_type: str, size: int, advice: str
) -> None:
    with pytest.raises(UserError, match=f"data.vocab.size to {advice}"):
        train_vocab([corpus / "train.en"], tmp_path / "m", size, model_type)
    assert list(tmp_path.iterdir()) == []


def test_text_without_a_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n  \n")
    with pytest.raises(UserError, match="no text to train"):
        train_vocab([tmp_path / "empty"], tmp_path / "m", 100)


def test_invalid_utf8_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"good\nb\xff\n")
    with pytest.raises(UserError, match="bad: line 2: invalid UTF-8"):
        train_vocab([tmp_path / "bad"], tmp_path / "m", 100)


def test_missing_damaged_and_foreign_models_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such vocabulary"):
        SentencePieceTokenizer.load(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        SentencePieceTokenizer.load(tmp_path / "damaged")
    spm.SentencePieceTrainer.Train(
        input=str(corpus / "train.en"),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=60,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="first four pieces"):
        SentencePieceTokenizer.load(tmp_path / "foreign.model")


def test_unseen_characters_become_bytes_on_request(corpus: Path, tmp_path: Path) -> None:
    files = [corpus / "train.en", corpus / "train.de"]
    vocab = train_vocab(files, tmp_path / "m", 400, "bpe", byte_fallback=True)
    line = "漢字 ☺ the man"
    ids = vocab.encode(line)
    assert vocab.symbols.unk not in ids and vocab.decode(ids) == line
    assert vocab.pieces(vocab.encode("☺"))[-3:] == ["<0xE2>", "<0x98>", "<0xBA>"]
    assert vocab.join(vocab.split_lines([line])[0]) == line
    assert vocab.join(vocab.pieces(ids)) == line
    plain = train_vocab(files, tmp_path / "n", 144, "bpe")
    assert plain.symbols.unk in plain.encode(line)
    # a model may say bytes that are no text, or the end of a line
    (byte,) = (i for i in range(len(vocab)) if vocab.pieces([i]) == ["<0xE2>"])
    assert vocab.decode([byte, *vocab.encode("a")]).endswith("\ufffd a")
    (end,) = (i for i in range(len(vocab)) if vocab.pieces([i]) == ["<0x0A>"])
    assert "\n" not in plain_text(vocab, [*vocab.encode("a"), end, *vocab.encode("b")])
