"""What holds for symbols, pairs of tokenizers and the table of their kinds."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from ds_seq.config.data import DataConfig
from ds_seq.config.vocab import VocabConfig
from ds_seq.errors import UserError
from ds_seq.names import TOKENIZER_NAMES
from ds_seq.plugins import trusting
from ds_seq.text.build import TOKENIZERS, load_tokenizers, read_tokenizers, train_tokenizer
from ds_seq.text.normalize import Normalizer
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tags import language_tags, untagged, untagged_message
from ds_seq.text.tokenizer import Symbols, Tokenizers
from tests.data.characters import CharacterTokenizer
from tests.data.vocabulary import train_vocab

CHARACTERS = {"name": "tests.data.characters:CharacterTokenizer", "options": {"upper": False}}


@pytest.fixture(autouse=True)
def trusted() -> Iterator[None]:
    with trusting([str(CHARACTERS["name"])]):
        yield


def section(**vocab: object) -> DataConfig:
    return DataConfig.model_validate(
        {"source_lang": "en", "target_lang": "de", "dir": "d", "vocab": vocab}
    )


def test_symbols_that_no_hypothesis_may_hold() -> None:
    assert Symbols(pad=1, eos=2, unk=3, start=2, bos=0).never_generated == {0, 1}
    assert Symbols(pad=1, eos=2, unk=3, start=2).never_generated == {1}
    assert Symbols(pad=0, eos=1, unk=2, start=0).never_generated == {0}
    assert Symbols(pad=1, eos=2, unk=3, start=7).never_generated == {1, 7}


def test_a_shared_tokenizer_has_its_own_fingerprint(
    vocab: SentencePieceTokenizer, corpus: Path, tmp_path: Path
) -> None:
    other = train_vocab([corpus / "train.en"], tmp_path / "m", 90)
    model = vocab.to_bytes()
    assert Tokenizers.shared(vocab).fingerprint == vocab.fingerprint
    assert vocab.fingerprint == hashlib.sha256(model).hexdigest()
    folding = SentencePieceTokenizer(model, normalizer=Normalizer(nfkc=True, fold_spaces=False))
    assert folding.fingerprint == vocab.fingerprint, "as before a tokenizer normalized"
    pairs = [Tokenizers(a, b) for a in (vocab, other) for b in (vocab, other)]
    assert len({pair.fingerprint for pair in pairs}) == 4
    assert [pair.size for pair in pairs] == [130, 130, 130, 90]


def test_sides_that_pad_differently_are_refused(vocab: SentencePieceTokenizer) -> None:
    strange = CharacterTokenizer(["a"], 0, Normalizer(nfkc=False, fold_spaces=False))
    strange.symbols = Symbols(pad=5, eos=2, unk=3, start=2)
    assert (
        Tokenizers(
            vocab, CharacterTokenizer(["a"], 0, Normalizer(nfkc=False, fold_spaces=False))
        ).symbols.eos
        == 0
    )
    with pytest.raises(ValueError, match="padded with id 5, the target with 1"):
        assert Tokenizers(strange, vocab).symbols


@pytest.mark.parametrize("fold_spaces", [False, True])
@pytest.mark.parametrize("nfkc", [False, True])
def test_normalizing_twice_changes_nothing(nfkc: bool, fold_spaces: bool) -> None:
    normalize = Normalizer(nfkc, fold_spaces)
    for sign in map(chr, range(sys.maxunicode + 1)):
        odd = unicodedata.category(sign) in ("Cc", "Cf", "Mn", "Zs", "Zl", "Zp")
        if odd or unicodedata.normalize("NFKC", sign) != sign:
            once = normalize(f"a {sign}\u0301 {sign}b{sign}")
            assert normalize(once) == once


def test_text_is_normalized_before_it_is_encoded(vocab: SentencePieceTokenizer) -> None:
    folding = SentencePieceTokenizer(
        vocab.to_bytes(), normalizer=Normalizer(nfkc=True, fold_spaces=False)
    )
    raw, clean = " the\u2028 m\x00an ", "the man"
    assert vocab.normalize(raw) == clean
    assert vocab.encode(raw) == vocab.encode(clean) == vocab.encode_lines([raw])[0]
    assert vocab.split_lines([raw]) == vocab.split_lines([clean])
    assert folding.normalize("ﬁnds") == "finds" and vocab.normalize("ﬁnds") == "ﬁnds"


def test_every_name_in_the_config_has_an_implementation() -> None:
    assert set(TOKENIZERS) == set(TOKENIZER_NAMES)


def test_kinds_are_trained_and_read_again_by_their_names(corpus: Path, tmp_path: Path) -> None:
    files = [corpus / "train.en", corpus / "train.de"]
    for vocab, kind in (({}, SentencePieceTokenizer), (CHARACTERS, CharacterTokenizer)):
        data = section(size=130, user_symbols=["<2de>"], **vocab)
        trained = train_tokenizer(data, data.vocab, files)
        (tmp_path / "vocab.model").write_bytes(trained.to_bytes())
        for read in (
            load_tokenizers(data, tmp_path),
            read_tokenizers(data, [trained.to_bytes()], ["vocabulary"]),
        ):
            assert read.source is read.target
            assert isinstance(read.target, kind)
            assert read.fingerprint == trained.fingerprint
            assert read.target.encode("<2de> the man") == trained.encode("<2de> the man")
            assert trained.encode("<2de> the man")[0] in read.target.tag_ids


def test_a_config_normalizes(vocab: SentencePieceTokenizer) -> None:
    data = DataConfig.model_validate({**section().model_dump(), "clean": {"nfkc": True}})
    assert read_tokenizers(data, [vocab.to_bytes()], ["x"]).source.normalize("ﬁne") == "fine"


def test_symbols_that_cleaning_would_change_are_refused() -> None:
    fields = section(user_symbols=["<２de>"]).model_dump()
    with pytest.raises(ValidationError, match="data.clean.nfkc turns <２de> into <2de>"):
        DataConfig.model_validate({**fields, "clean": {"nfkc": True}})


def test_padding_that_no_model_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = Symbols(pad=0, eos=1, unk=2, start=1)
    monkeypatch.setattr(CharacterTokenizer, "symbols", symbols)
    with pytest.raises(
        UserError, match="file: pads with id 0, but models support only padding id 1"
    ):
        read_tokenizers(section(**CHARACTERS), [b'[["a"], 0]'], ["file"])


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"name": "sentencpiece"}, r"no tokenizer 'sentencpiece' \(did you mean 'sentencepiece'"),
        ({"options": {"a": 1}}, "only an external tokenizer"),
        ({"normalization": "nmt_nkfc"}, r"no rule 'nmt_nkfc' \(did you mean 'nmt_nfkc'"),
        ({**CHARACTERS, "normalization": "nfkc"}, "applies to sentencepiece only"),
        ({"user_symbols": ["<2de>", "</s>"]}, "</s> is always in the vocabulary"),
        ({"user_symbols": ["<pad>"]}, "<pad> is always in the vocabulary"),
        ({"user_symbols": [""]}, "a symbol is empty"),
        ({"user_symbols": ["<2de>", "<2fr>", "<2de>"]}, "<2de> is listed twice"),
        ({"user_symbols": ["to de"]}, "'to de' contains white space"),
        ({"user_symbols": ["\t"]}, r"'\\t' contains white space"),
        ({"user_symbols": ["a\u00a0b"]}, "contains white space"),
        ({"user_symbols": ["x\u200b"]}, "invisible character"),
        ({"user_symbols": ["\u2581x"]}, "contains white space"),
        ({"user_symbols": ["<a>", "<b>", "<c>", "<d>"], "size": 8}, "8 has no room for text"),
        (
            {**CHARACTERS, "model_type": "bpe"},
            "applies to sentencepiece only; set options of tests.data",
        ),
    ],
)
def test_what_does_not_belong_to_a_kind_is_refused(vocab: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VocabConfig.model_validate(vocab)


@pytest.mark.parametrize(
    ("symbols", "tags"),
    [
        (["<2de>", "<br>"], ["<2de>", "<br>"]),
        (["<br>", "<number>"], []),
        (["<token>", "<num>"], []),
        (["<de>", "<fr>", "#x"], ["<de>", "<fr>"]),
        (["__de__", "@@"], ["__de__"]),
        ([">>deu<<"], [">>deu<<"]),
        (["de_DE", "deu_Latn", "A_B"], ["de_DE", "deu_Latn"]),
        (["<2en_XX>", "[2de]", "<to_de>"], ["<2en_XX>", "[2de]", "<to_de>"]),
    ],
)
def test_symbols_that_look_like_language_tags(symbols: list[str], tags: list[str]) -> None:
    normalizer = Normalizer(nfkc=False, fold_spaces=False)
    tokenizer = CharacterTokenizer(["[end]", "[pad]", "[unk]", *symbols], len(symbols), normalizer)
    found = language_tags(tokenizer)
    assert list(found.values()) == tags
    assert tokenizer.pieces(list(found)) == tags
    assert list(language_tags(tokenizer, symbols[:1]).values()) == symbols[:1]
    assert not language_tags(tokenizer, [])


def test_chosen_tags_are_user_symbols() -> None:
    data = section(user_symbols=["DE:"]).model_dump()
    assert DataConfig.model_validate({**data, "language_tags": ["DE:"]}).language_tags == ["DE:"]
    with pytest.raises(ValidationError, match="'FR:' is not in vocab.user_symbols"):
        DataConfig.model_validate({**data, "language_tags": ["FR:"]})


def test_lines_without_a_known_tag() -> None:
    lines = ["<2de> a", " <2fr>b", "c <2de>", "", " \u00a0", "<2es> d", "__en__ e", "<br> f"]
    assert untagged(lines, {4: "<2de>", 5: "<2fr>"}) == [2, 5, 6, 7]
    assert untagged(lines, {}) == [0, 1, 5, 6], "none is in the vocabulary"
    assert untagged_message({4: "<2de>"}).startswith("source line(s) begin with no language tag")
    assert "a language tag that is not in the vocabulary" in untagged_message({})
