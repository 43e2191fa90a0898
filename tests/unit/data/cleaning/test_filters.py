"""Each key of `data.clean` that is a filter drops what it says, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sacremoses import MosesPunctNormalizer

from ds_seq.config.clean import PRESETS, CleanConfig
from ds_seq.data.cleaning.build import build_clean_options
from ds_seq.data.cleaning.options import CleanOptions, reason_to_drop
from ds_seq.errors import UserError
from ds_seq.plugins import trusting
from ds_seq.text.languages import letters, primary_language

LOOSE = {"max_ratio": 100.0, "max_words": 1000}


def _options(languages: tuple[str, str] = ("en", "de"), **keys: Any) -> CleanOptions:
    return build_clean_options(CleanConfig(**{**LOOSE, **keys}), languages)


@pytest.mark.parametrize(
    ("keys", "source", "target", "dropped"),
    [
        ({"min_chars": 3}, "abc", "ab", True),
        ({"min_chars": 3}, "abc", "def", False),
        ({"max_chars": 3}, "abcd", "abc", True),
        ({"max_chars": 3}, "abc", "xyz", False),
        ({"max_char_ratio": 2.0}, "abcde", "ab", True),
        ({"max_char_ratio": 2.0}, "abcd", "ab", False),
        ({"max_word_chars": 9}, "a" * 10, "b", True),
        ({"max_word_chars": 9}, "a" * 9 + " " + "b" * 9, "b", False),
        ({"max_word_chars": 9}, "see https://example.org/long/path", "b", False),
        ({"max_word_chars": 9}, "我" * 30, "b", False),
        ({"drop_url_mismatch": True}, "see https://a.org.", "siehe https://b.org.", True),
        ({"drop_url_mismatch": True}, "see https://a.org.", "siehe (https://a.org)", False),
        ({"drop_url_mismatch": True}, "mail me@a.org", "schreib uns", True),
        ({"drop_url_mismatch": True}, "www.a.org b@c.de", "b@c.de www.a.org", False),
        ({"drop_url_mismatch": True}, "@ home", "zu Hause", False),
        ({"min_number_overlap": 1.0}, "in 1999", "im Jahr 1989", True),
        ({"min_number_overlap": 1.0}, "3,000.5 and 007", "3.000,5 und 7", False),
        ({"min_number_overlap": 1.0}, "१२ books", "12 Bücher", False),
        ({"min_number_overlap": 1.0}, "1 2 3", "1 2 4", False),
        ({"min_number_overlap": 1.5}, "1 2 3", "1 2 4", True),
        ({"min_number_overlap": 1.0}, "mp3 1st", "B2B", False),
        ({"max_repeated_chars": 4}, "a.....b", "c", True),
        ({"max_repeated_chars": 4}, "a....b", "c      d", False),
        ({"max_repeated_words": 2}, "no no no", "nein", True),
        ({"max_repeated_words": 2}, "a b a b a b", "nein", True),
        ({"max_repeated_words": 2}, "no no yes no no", "nein", False),
        ({"min_alphabet_words": 0.5}, "one 2 3", "eins", True),
        ({"min_alphabet_words": 0.5}, '"one" (two) 3', "eins", False),
        ({"min_alphabet_chars": 0.5}, "ab 1 2 3", "eins", True),
        ({"min_alphabet_chars": 0.5}, "один два", "eins", True),
        ({"min_alphabet_chars": 0.5}, "abc 1 2 3", "größer", False),
        ({"min_unique_ratio": 0.3, "unique_order": 1}, "abababab", "b", True),
        ({"min_unique_ratio": 0.3, "unique_order": 1}, "abcdefgh", "b", False),
        ({"min_unique_ratio": 0.5, "unique_order": 6}, "a loop, a loop, a loop, a loop", "b", True),
        ({"min_unique_ratio": 0.5, "unique_order": 6}, "this is an ordinary line", "b", False),
    ],
)
def test_a_filter_drops_what_it_says(
    keys: dict[str, Any], source: str, target: str, dropped: bool
) -> None:
    options = _options(**keys)
    reason = reason_to_drop(source, target, options)
    assert (reason is not None) == dropped
    assert reason in (None, *(rule.reason for rule in options.filters)), "and no other filter"
    swapped = reason_to_drop(target, source, _options(("de", "en"), **keys))
    assert swapped == reason, "both sides are looked at"
    assert reason_to_drop(source, target, _options()) is None, "it is off without its key"


def test_terms(tmp_path: Path) -> None:
    (tmp_path / "en").write_text("Darn\nbad  thing\n\n", encoding="utf-8")
    (tmp_path / "zh").write_text("坏东西\n", encoding="utf-8")
    lists = {"source_terms": str(tmp_path / "en"), "target_terms": str(tmp_path / "zh")}
    languages = ("en", "zh")
    difference = _options(languages, **lists, max_term_difference=0)
    assert reason_to_drop("a DARN day", "日子", difference) == "term_difference"
    assert reason_to_drop("a bad-thing", "一个坏东西啊", difference) is None
    assert reason_to_drop("darned, thing", "日子", difference) is None
    most = _options(languages, **lists, max_terms=1)
    assert reason_to_drop("darn, darn bad thing", "日子", most) == "terms"
    assert reason_to_drop("darn, darn", "坏东西 坏东西", most) is None, "terms count once"


def test_repairs(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_text("^Page \\d+: \n", encoding="utf-8")
    options = _options(unescape=True, fix_wiki=True, patterns=str(tmp_path / "patterns"))
    text = "Page 12: ''[[Berlin|the city]]''[1] &amp;amp; [https://a.org its page]{{note}}"
    for repair in options.repairs:
        text = repair(text)
    assert text == "the city & its page"
    assert _options().repairs == ()


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("patterns", "fine\n(\n", "patterns: line 2: is no regular expression"),
        ("source_terms", None, "source_terms: no such file"),
        ("target_terms", b"\xff\n", "target_terms: line 1: invalid UTF-8"),
    ],
)
def test_lists_that_cannot_be_read(
    tmp_path: Path, key: str, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / key
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        _options(**{key: str(path)}, max_terms=1 if "terms" in key else None)


@pytest.mark.parametrize(
    ("code", "text", "others"),
    [
        ("en", "English", "Жя中"),
        ("de_DE", "größer", "Ж"),
        ("vi", "Tiếng", "中"),
        ("rus_Cyrl", "Русский", "Latin"),
        ("srp_Latn", "Srpski", "Ж"),
        ("el", "Ελληνικά", "L"),
        ("ar", "العربية", "L"),
        ("he", "עברית", "L"),
        ("hin_Deva", "हिन्दी", "L"),
        ("th", "ไทย", "L"),
        ("zh-Hant", "繁體中文", "ひ"),
        ("jpn", "日本語ひらカナ", "한"),
        ("kor_Hang", "한국어", "中"),
        ("ka", "ქართული", "L"),
        ("am", "አማርኛ", "L"),
    ],
)
def test_letters_of_languages(code: str, text: str, others: str) -> None:
    keys: dict[str, Any] = {"min_alphabet_chars": 1.0, "drop_identical": False}
    assert reason_to_drop(text, text, _options((code, code), **keys)) is None
    for letter in others:
        assert reason_to_drop(letter, letter, _options((code, code), **keys)) == "alphabet_chars"
    assert letters(code) == letters(code.replace("_", "-").lower())


def test_languages_are_compared_by_their_name() -> None:
    codes = ("de", "deu", "ger", "de-AT", "deu_Latn")
    assert {primary_language(code) for code in codes} == {"de"}
    assert primary_language("gsw") == "gsw"


class Vowels:
    """Takes text with an `ä` for German; knows nothing else."""

    def __call__(self, text: str) -> tuple[str, float]:
        return ("deu_Latn", 0.9) if "ä" in text else ("en", 0.6)


def test_language_identification_by_code_of_the_user() -> None:
    name = f"{__name__}:Vowels"
    options = _options(language_id=name)
    with pytest.raises(UserError, match="code from outside ds_seq and was not run"):
        options.check()
    with trusting([name]):
        options.check()
    assert reason_to_drop("hat", "Hüte", options) == "language"
    assert reason_to_drop("hat", "Mäuse", options) is None
    strict = _options(language_id=name, min_language_score=0.7)
    assert reason_to_drop("hat", "Mäuse", strict) == "language"


def test_a_library_that_is_missing() -> None:
    with pytest.raises(UserError, match=r"lingua is not installed; run `pip install lingua-lang"):
        _options(language_id="lingua").check()


def test_presets_are_the_published_values() -> None:
    assert (PRESETS["mozilla"]["max_words"], PRESETS["mozilla"]["max_ratio"]) == (150, 1 / 0.5)
    assert (PRESETS["nllb"]["max_chars"], PRESETS["nllb"]["max_char_ratio"]) == (1050, 9.0)
    for name, values in PRESETS.items():
        config = CleanConfig(preset=name)
        assert {key: vars(config)[key] for key in values} == dict(values)
        assert CleanConfig(preset=name, max_words=99).max_words == 99, "a key wins over it"
    assert reason_to_drop("1 2 3 4", "1 2 3 4 a", _options(preset="mozilla")) == "alphabet_words"


def test_punctuation_is_normalized_once_and_for_all() -> None:
    normalize = _options(punctuation="moses").normalizer
    assert normalize("„Hi“ – it’s") == '"Hi" - it\'s'
    moses = MosesPunctNormalizer(norm_quote_commas=False, norm_numbers=False).normalize
    draw = random.Random(0)
    for _ in range(1000):
        text = normalize("".join(draw.choices("ab1 '\"()%:;`.,!?-„“”–—´‘’‚…«»\u00a0ºnC", k=6)))
        assert normalize(text) == text == moses(text), "it is what no rule changes"
        plain = "".join(draw.choices("ab1 '\".,!?-ä", k=6)).strip()
        assert normalize(plain) == " ".join(moses(plain).split())
    assert _options(unicode_form="NFC").normalizer("u\u0308") == "ü"
