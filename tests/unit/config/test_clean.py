"""`data.clean`: presets, language pairs, corpora, and how it is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.clean import (
    FIRST,
    CleanConfig,
    clean_of_corpus,
    later_defaults,
    override_errors,
    recorded_options,
)
from ds_seq.config.load import load_experiment
from ds_seq.errors import UserError

PAIR = ("en", "ja")


def test_the_nearest_value_wins() -> None:
    base = CleanConfig(
        max_ratio=1.5,
        max_words=10,
        min_words=2,
        max_chars=90,
        pairs={
            "en-ja": {"max_ratio": 4.0},
            "*-ja": {"max_ratio": 3.0, "max_words": 30, "max_chars": 80},
            "en-*": {"max_words": 20},
            "ja-en": {"max_chars": 70},
        },
    )
    found = clean_of_corpus(base, PAIR)
    assert (found.max_ratio, found.max_words, found.max_chars, found.min_words) == (4.0, 20, 80, 2)
    found = clean_of_corpus(base, PAIR, {"max_ratio": 9.0})
    assert (found.max_ratio, found.max_words) == (9.0, 20)
    found = clean_of_corpus(base, ("fr", "de"), {"max_words": None or 11})
    assert (found.max_ratio, found.max_words, found.pairs) == (1.5, 11, {})


def test_a_preset_of_a_corpus_stands_for_its_keys() -> None:
    base = CleanConfig(max_words=10, max_chars=33)
    found = clean_of_corpus(base, PAIR, {"preset": "mozilla", "max_ratio": 2.5})
    assert (found.max_words, found.max_ratio, found.max_chars) == (150, 2.5, 33)
    assert found.min_alphabet_words == 0.4
    found = clean_of_corpus(base, PAIR, {"preset": "nllb"})
    assert found.max_char_ratio == 9.0
    assert found.punctuation is None, "normalization is the same for all text"


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"max_rati": 2}, "max_rati", "unknown key (did you mean 'max_ratio'?)"),
        ({"nfkc": True}, "nfkc", "is the same for all training text"),
        ({"pairs": {}}, "pairs", "is the same for all training text"),
        ({"max_words": 0}, "max_words", "should be"),
        ({"min_words": 300}, "min_words", "300 is more than max_words 250"),
        ({"min_score": 0.5}, "min_score", "needs a score of each pair"),
    ],
)
def test_a_wrong_change_is_named(
    tmp_path: Path, changes: dict[str, Any], key: str, message: str
) -> None:
    ((found, text),) = override_errors(CleanConfig(), changes)
    assert found == key and message in text
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndata:\n  source_lang: en\n  target_lang: ja\n  dir: d\n"
        f"  clean:\n    pairs:\n      en-ja: {changes}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError) as error:
        load_experiment(path)
    (line,) = [line for line in str(error.value).splitlines() if "clean.pairs" in line]
    assert line.startswith(f"{path}:8: data.clean.pairs.en-ja.{key}: ") and message in line


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"pairs": {"ja": {}}}, "is not a language pair such as en-de"),
        ({"nfkc": True, "unicode_form": "NFC"}, "give either it or nfkc"),
        ({"language_id": "fastext"}, "(did you mean 'fasttext'?)"),
        ({"language_id": "fasttext"}, "needs the file of a model, such as lid.176.bin"),
        ({"min_chars": 9, "max_chars": 8}, "9 is more than max_chars 8"),
        ({"source_terms": "x"}, "give max_terms or max_term_difference, too"),
        ({"max_terms": 1}, "needs a list"),
        ({"score_column": 1}, "is a column of score_files"),
        ({"preset": "mozila"}, "Input should be 'mozilla', 'nllb' or 'summarization'"),
    ],
)
def test_a_section_that_makes_no_sense(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        CleanConfig(**section)
    assert message in str(error.value)


def test_records_of_experiments_without_new_keys_are_those_of_before() -> None:
    """Manifests and steps of earlier versions stay up to date."""
    assert list(recorded_options(CleanConfig())) == [
        "nfkc", "fold_spaces", "min_words", "max_words", "max_ratio", "drop_identical",
        "drop_duplicates",
    ]  # fmt: skip
    assert recorded_options(CleanConfig(), True) == {"nfkc": False, "fold_spaces": False}
    assert recorded_options(CleanConfig(max_chars=9, punctuation="moses"), True) == {
        "nfkc": False, "fold_spaces": False, "punctuation": "moses",
    }  # fmt: skip
    preset = recorded_options(CleanConfig(preset="mozilla"))
    assert preset["min_alphabet_words"] == 0.4 and "preset" not in preset
    restored = {**later_defaults(), **preset}
    assert CleanConfig(**restored) == CleanConfig(preset="mozilla").model_copy(
        update={"preset": None}
    )
    assert not FIRST & later_defaults().keys()
