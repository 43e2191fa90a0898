"""Text comes out of a vocabulary as it went in, or its rule that changes it is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.data import DataConfig
from ds_seq.errors import UserError
from ds_seq.names import NORMALIZATION_RULES
from ds_seq.text import sentencepiece_training
from ds_seq.text.build import vocab_notes
from ds_seq.text.round_trip import changes, rewriting
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.vocabulary import train_vocab

HARD = [
    "好，是的！（对）；“引号”：１２３ＡＢ",
    "ทำได้ ภาษาไทย",
    "Größe x² … ½ ™ ﬁn ① ㎏ Ａ é e\u0301",
    "10\u00a0% und 5\u202f€ \u2013 so\u00adft",
    "全\u3000角\u3000空白",
    "ភាសា\u200bខ្មែរ",
    "می\u200cخواهم 𠀀𠮷 👩\u200d👧",
    "\u3000ein Absatz\u00a0",
]
OLD = Path(__file__).parents[2] / "compat" / "v0_1" / "runs" / "dense" / "vocab.model"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    path = tmp_path_factory.mktemp("hard") / "text"
    easy = (corpus / "train.de").read_text(encoding="utf-8")
    path.write_text("\n".join([*HARD * 3, easy]), encoding="utf-8")
    return path


def train(text: Path, folder: Path, **options: Any) -> SentencePieceTokenizer:
    return train_vocab([text], folder / "m", 200, **{"model_type": "bpe", **options})


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_text_comes_out_as_it_is(text: Path, tmp_path: Path, model_type: str) -> None:
    vocab = train(text, tmp_path, model_type=model_type, user_symbols=["<2de>"])
    assert vocab.normalization == "identity"
    assert [vocab.decode(ids) for ids in vocab.encode_lines(HARD)] == HARD
    assert [vocab.decode(vocab.encode(f"<2de> {line}")) for line in HARD] == [
        f"<2de> {line}" for line in HARD
    ]
    assert list(changes(vocab, HARD)) == []
    assert rewriting(vocab) is None
    # tabs, line breaks and runs of ordinary spaces are no text; other spaces are
    assert vocab.decode(vocab.encode(" ein\t Absatz\u2028 \r10 ")) == "ein Absatz 10"


@pytest.mark.parametrize("rule", NORMALIZATION_RULES)
def test_a_rule_is_part_of_the_vocabulary(text: Path, tmp_path: Path, rule: str) -> None:
    vocab = train(text, tmp_path, normalization=rule)
    assert SentencePieceTokenizer.load(tmp_path / "m").normalization == rule
    described, changed = rewriting(vocab), list(changes(vocab, HARD))
    if rule == "identity":
        assert described is None and not changed
        return
    assert described is not None and described.startswith(f"the rule {rule} (，")
    assert vocab.decode(vocab.encode("x² …")) == "x2 ..." == vocab.rewrite("x² …")
    assert changed[0].number == 1 and changed[0].text == HARD[0]
    assert vocab.encode("10\u00a0% x") == vocab.encode("10 % x"), "other rules fold spaces"


def test_rules_of_a_file(text: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("DF\t73 73\n")  # ß -> ss
    vocab = train(text, tmp_path, normalization=str(rules))
    assert vocab.decode(vocab.encode("Größe x²")) == "Grösse x²"
    described = rewriting(vocab)
    assert described is not None and described.endswith("ß -> ss)") and "x²" not in described
    assert vocab_notes(section(normalization=str(rules)).vocab, vocab, "v")[0].startswith(
        "v: rewrites"
    )
    with pytest.raises(UserError, match=r"data.vocab.normalization: .*none.tsv: no such file"):
        train(text, tmp_path, normalization="none.tsv")


def section(**vocab: Any) -> DataConfig:
    languages = {"source_lang": "en", "target_lang": "de", "dir": "d"}
    return DataConfig.model_validate({**languages, "vocab": vocab})


def test_old_vocabularies_keep_their_rule_and_are_noted(text: Path, tmp_path: Path) -> None:
    old = train(text, tmp_path, normalization="nmt_nfkc")
    (note,) = vocab_notes(section().vocab, old, "data/vocab.model")
    assert note.startswith("data/vocab.model: rewrites text by the rule nmt_nfkc (， -> ,")
    assert "data.vocab.normalization is identity" in note
    new = train(text, tmp_path)
    assert vocab_notes(section().vocab, new, "v") == []
    assert (
        "leaves text as it is, but" in vocab_notes(section(normalization="nfkc").vocab, new, "v")[0]
    )
    # version 0.1, without its table: it rewrites nothing, and folds spaces as it always did
    oldest = SentencePieceTokenizer.load(OLD)
    assert rewriting(oldest) is None
    assert oldest.normalize("a\u00a0 b\u200bc") == "a bc"


def test_lines_that_cannot_be_learned_from_are_counted(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / "long"
    lines = ["好" * 1500, "x ▅ y", "ä" * 2096]  # 4,500, few and 4,192 bytes
    long.write_text("\n".join([*lines, text.read_text(encoding="utf-8")]), encoding="utf-8")
    train(long, tmp_path)
    message = capfd.readouterr().err
    assert "warning: 2 line(s) took no part in training the vocabulary" in message
    assert message.endswith(f"the first is {long}: line 1\n")
    long.write_text("x" * 5000 + "\n")
    with pytest.raises(UserError, match=r"no text .*all lines are longer than 4,192 bytes"):
        train(long, tmp_path)


def test_a_large_text_is_learned_from_in_another_process(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    small = train(text, tmp_path, input_sentence_size=200)
    monkeypatch.setattr(sentencepiece_training, "LARGE_TEXT", 0)
    monkeypatch.setattr(sentencepiece_training, "_REPORT_SECONDS", 0.0)
    assert train(text, tmp_path, input_sentence_size=200).to_bytes() == small.to_bytes()
    progress = capfd.readouterr().err.splitlines()
    assert len(progress) > 3 and all(line.startswith("vocabulary: ") for line in progress)
    assert not any("absl" in line for line in progress), "what the library for logs says of itself"
    with pytest.raises(UserError, match=r"data.vocab.size to at most"):
        train_vocab([text], tmp_path / "m", 50_000)
    with pytest.raises(UserError, match="none: no such file"):
        train_vocab([tmp_path / "none"], tmp_path / "m", 100)
