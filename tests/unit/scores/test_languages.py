"""Every code of a language without word spaces means the same in all places that split text."""

from __future__ import annotations

import pytest

from ds_seq.commands.score import main as score
from ds_seq.distill.filters import Similarity
from ds_seq.errors import UserError, run_command
from ds_seq.generation.mbr import build_utility
from ds_seq.scores import scoring
from ds_seq.scores.languages import bleu_tokenizer, is_english, language_warning
from ds_seq.scores.metric import find_metric
from ds_seq.scores.scoring import Scorer, build_metric

CODES = {
    "zh": "zh ZH zh_CN zh-CN zh-Hant zh_TW zh-hant-hk zho chi zho_Hans zho_Hant cmn cmn-Hans yue "
    "yue_Hant zh-yue zh-min-nan zh-classical lzh wuu Chinese Simplified_Chinese zh_CN.UTF-8 cn zht",
    "ja-mecab": "ja ja-JP ja_XX jpn jpn_Jpan jp JA Japanese",
    "ko-mecab": "ko ko_KR kor kor_Hang Korean",
    "char": "th tha th_TH tha_Thai lo lao lo_LA lao_Laoo km khm km_KH khm_Khmr my mya my_MM "
    "mya_Mymr bur bo bod_Tibt dz dzo_Tibt shn_Mymr ksw pi-Thai khmer",
    "13a": "en de de_DE eng_Latn fr-CA vi ru sr-Cyrl ar hi_IN zh-Latn nan_Latn ja-Latn tok cs mn "
    "tgt",
}


@pytest.mark.parametrize("tokenizer", CODES)
def test_codes(tokenizer: str) -> None:
    wrong = [code for code in CODES[tokenizer].split() if bleu_tokenizer(code) != tokenizer]
    assert not wrong
    assert bleu_tokenizer("") == "13a"


HYPOTHESIS, REFERENCE = "今天天气很好，我们去公园散步。", "今天天气很好，我们去公园玩。"


@pytest.mark.parametrize("code", ["zh", "zh_CN", "cmn_Hans", "yue", "th", "km_KH"])
def test_all_places_split_the_text(code: str) -> None:
    """Without it, two sentences that differ in a word have nothing in common."""
    corpus = Scorer(code)([HYPOTHESIS], [REFERENCE])[0]
    assert 50 < corpus.value < 99
    assert f"tok:{bleu_tokenizer(code)}" in corpus.signature
    metric = find_metric("bleu", code, "validation.metrics")
    assert metric.compute([HYPOTHESIS], [[REFERENCE]]).value == corpus.value
    assert 50 < Similarity(["bleu"], code)(HYPOTHESIS, REFERENCE)[0] < 99
    assert 50 < build_utility("bleu", code)([HYPOTHESIS, REFERENCE])[0, 1] < 99
    assert 50 < Similarity(["rouge1"], code)(HYPOTHESIS, REFERENCE)[0] < 99
    rouge = find_metric("rouge1", code, "validation.metrics")
    assert 50 < rouge.compute([HYPOTHESIS], [[REFERENCE]]).value < 99


def test_ter_counts_characters_of_chinese_and_refuses_what_it_cannot_split() -> None:
    whole, split = (build_metric("ter", code) for code in ("en", "zh_CN"))
    assert whole.corpus_score([HYPOTHESIS], [[REFERENCE]]).score == 100.0
    assert 0 < split.corpus_score([HYPOTHESIS], [[REFERENCE]]).score < 30
    with pytest.raises(UserError, match=r"ter: cannot split text in 'th' .* use bleu"):
        build_metric("ter", "th")


@pytest.mark.parametrize("code", ["ja-JP", "kor"])
def test_a_missing_package_is_refused_in_all_places(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object, tokenize: str, **options: object) -> None:
        raise RuntimeError(f"Please install them.\n\n    pip install sacrebleu[{tokenize}]\n")

    monkeypatch.setattr(scoring, "BLEU", missing)
    needs = rf"cannot split text in '{code}' .*pip install 'sacrebleu\[..-mecab\]', or use chrf"
    for build in (
        lambda: Scorer(code),
        lambda: Similarity(["bleu"], code),
        lambda: Similarity(["rouge2"], code),
        lambda: build_utility("bleu", code),
        lambda: find_metric("bleu", code, "validation.metrics"),
        lambda: find_metric("rougeL", code, "validation.metrics"),
    ):
        with pytest.raises(UserError, match=needs):
            build()
    assert Similarity(["chrf"], code)("a", "a") == [100.0]


def test_english_by_any_code_is_stemmed() -> None:
    assert all(map(is_english, ("en", "en_US", "en-GB", "eng", "eng_Latn", "English")))
    assert not any(map(is_english, ("", "enm", "de", "zh")))
    assert Similarity(["rouge1"], "en_US")("cats", "cat") == [100.0]


def test_text_without_spaces_in_no_such_language_is_reported(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "language 'tgt'" in (language_warning([REFERENCE], "tgt") or "")
    assert "an unknown language" in (language_warning(["ฉันรักประเทศไทย"], "") or "")
    assert language_warning([REFERENCE], "zh_CN") is None
    assert language_warning(["Das Zeichen 好 heißt gut."], "de") is None
    folder = tmp_path_factory.mktemp("score")
    for name in ("hyp", "ref"):
        (folder / name).write_text(f"{REFERENCE}\n", encoding="utf-8")
    texts = [str(folder / "hyp"), str(folder / "ref")]
    for options, warned in ((["--target-lang", "zh-CN"], False), ([], True)):
        assert run_command(score, [*texts, *options]) == 0
        assert ("no spaces between words" in capsys.readouterr().err) == warned
