"""The `data.clean` section: normalization, filters and removal of duplicates in raw text.

Each filter is one key. Without it, the filter is off, apart from the few that have always been on.
`preset` sets the keys that the file does not give; `pairs` and the `clean` of a corpus change some
of them for a language pair or a corpus, see `clean_of_corpus`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from ds_seq.config.base import PLUGIN, Config, FieldErrors, PositiveInt, shown
from ds_seq.names import (
    LANGUAGE_IDS,
    CleanPreset,
    DuplicateKey,
    Punctuation,
    UnicodeForm,
)
from ds_seq.plugins import EXTERNAL_PATTERN, nearest

NORMALIZATION = frozenset({"nfkc", "fold_spaces", "unicode_form", "punctuation"})
"""Fields that are not filters: they hold for valid and test text, and for input to translate."""
SHARED = NORMALIZATION | {"pairs"}
"""Fields that no language pair and no corpus may change."""
FIRST = frozenset(
    {"nfkc", "fold_spaces", "min_words", "max_words", "max_ratio"}
    | {"drop_identical", "drop_duplicates"}
)
"""Fields that manifests and records have always named. Others are named if they are set."""

FILES = ("patterns", "source_terms", "target_terms", "language_id_model", "score_files")
"""Fields that name files."""

PRESETS: Mapping[CleanPreset, Mapping[str, Any]] = {
    "mozilla": {
        "unescape": True,
        "fix_wiki": True,
        "max_words": 150,
        "max_word_chars": 150,
        "max_ratio": 2.0,
        "min_alphabet_words": 0.4,
        "min_alphabet_chars": 0.5,
        "min_number_overlap": 1.0,
        "drop_url_mismatch": True,
    },
    "nllb": {
        "punctuation": "moses",
        "min_chars": 1,
        "max_chars": 1050,
        "max_char_ratio": 9.0,
        "max_term_difference": 2,
    },
    # a summary is much shorter than its text, and a text may be long
    "summarization": {"max_words": 1_000_000, "max_ratio": 1_000_000.0},
}
"""Values for summarization, and those of two pipelines that are used in production: the filters of
Mozilla's training of translation models (`default.filters.json`) and of NLLB (stopes). What needs a
model or a list (`language_id`, `min_score`, `patterns`, terms) is given by itself: no file of it
comes with us."""

_Share = Annotated[float, Field(ge=0.0, le=1.0)]


class CleanConfig(Config):
    """Normalization and filters of raw text. Valid and test text are normalized, never filtered."""

    preset: CleanPreset | None = Field(
        default=None,
        description="Named values for keys that are not given: `mozilla` (repairs, lengths, ratio, "
        "alphabet, numbers, addresses), `nllb` (punctuation, lengths in characters, terms), or "
        "`summarization` (no limits of length and ratio).",
    )
    nfkc: bool = Field(
        default=False,
        description="Unicode NFKC normalization (folds full-width letters, ligatures, ...).",
    )
    unicode_form: UnicodeForm | None = Field(
        default=None, description="Unicode normalization form; instead of `nfkc`."
    )
    fold_spaces: bool = Field(
        default=False,
        description="Replace no-break, ideographic and other special spaces with ordinary ones, "
        "and remove soft hyphens and zero-width spaces.",
    )
    punctuation: Punctuation | None = Field(
        default=None,
        description="Normalize punctuation: `moses` are the rules of sacremoses that hold for all "
        "languages (quotes, dashes, spaces before signs).",
    )
    unescape: bool = Field(
        default=False, description="Replace HTML entities (`&amp;`) in training text."
    )
    fix_wiki: bool = Field(
        default=False,
        description="Remove footnotes, link brackets, headings and other marks of wikis from "
        "training text.",
    )
    patterns: str | None = Field(
        default=None,
        description="File of regular expressions, one per line, whose matches are removed from "
        "training text.",
    )
    min_words: PositiveInt = Field(default=1, description="Drop pairs with a side of fewer words.")
    max_words: PositiveInt = Field(default=250, description="Drop pairs with a side of more words.")
    max_ratio: float = Field(
        default=3.0, ge=1.0, description="Drop pairs whose ratio of word counts is larger."
    )
    drop_identical: bool = Field(
        default=True, description="Drop pairs whose source and target are identical."
    )
    min_chars: PositiveInt | None = Field(
        default=None, description="Drop pairs with a side of fewer characters."
    )
    max_chars: PositiveInt | None = Field(
        default=None, description="Drop pairs with a side of more characters."
    )
    max_char_ratio: float | None = Field(
        default=None, ge=1.0, description="Drop pairs whose ratio of characters is larger."
    )
    max_word_chars: PositiveInt | None = Field(
        default=None,
        description="Drop pairs with a longer word on a side, addresses and scripts without spaces "
        "apart.",
    )
    drop_url_mismatch: bool = Field(
        default=False, description="Drop pairs whose sides have other web or mail addresses."
    )
    min_number_overlap: float | None = Field(
        default=None,
        gt=0.0,
        description="Drop pairs if (1 + numbers on both sides) / (1 + numbers on one side only) is "
        "smaller.",
    )
    max_repeated_chars: PositiveInt | None = Field(
        default=None, description="Drop pairs in which one character stands more often in a row."
    )
    max_repeated_words: PositiveInt | None = Field(
        default=None,
        description="Drop pairs in which one word, or up to four, stands more often in a row.",
    )
    min_alphabet_words: _Share | None = Field(
        default=None,
        description="Drop pairs with a side of which a smaller share of words begins with a letter "
        "of its language's script.",
    )
    min_alphabet_chars: _Share | None = Field(
        default=None,
        description="Drop pairs with a side of which a smaller share of characters are letters of "
        "its language's script.",
    )
    min_unique_ratio: _Share | None = Field(
        default=None,
        description="Drop pairs with a side of which a smaller share of sequences of "
        "`unique_order` characters are different.",
    )
    unique_order: PositiveInt = Field(
        default=1, le=100, description="Characters of a sequence that `min_unique_ratio` counts."
    )
    source_terms: str | None = Field(
        default=None, description="File of terms of the source language, one per line."
    )
    target_terms: str | None = Field(
        default=None, description="File of terms of the target language, one per line."
    )
    max_terms: int | None = Field(
        default=None, ge=0, description="Drop pairs with a side of more terms of its list."
    )
    max_term_difference: int | None = Field(
        default=None,
        ge=0,
        description="Drop pairs whose numbers of terms differ by more; only if both lists are "
        "given.",
    )
    language_id: Annotated[str | None, PLUGIN] = Field(
        default=None,
        description="Drop pairs with a side in another language, according to this library: "
        + ", ".join(f"`{name}`" for name in LANGUAGE_IDS)
        + ", or `package.module:Name`.",
    )
    language_id_model: str | None = Field(
        default=None, description="File of the model that `language_id` needs (fasttext)."
    )
    min_language_score: _Share = Field(
        default=0.0, description="Smallest probability of the language that `language_id` finds."
    )
    score_files: list[str] = Field(
        default=[],
        description="Files of scores, one for each pair of files of the corpus; line n is the "
        "score of pair n.",
    )
    score_column: PositiveInt | None = Field(
        default=None, description="Tab-separated column of the scores in `score_files`, from 1 on."
    )
    min_score: float | None = Field(
        default=None,
        ge=-1e6,  # it may be a log-probability
        le=1e6,
        description="Drop pairs with a smaller score; needs `score_files`.",
    )
    drop_duplicates: bool = Field(
        default=True,
        description="Keep only one of equal pairs: the best score, or else the first.",
    )
    duplicate_key: DuplicateKey = Field(
        default="pair",
        description="What makes pairs equal: both sides, one of them, or these without case, "
        "punctuation and the values of digits.",
    )
    max_per_source: PositiveInt | None = Field(
        default=None, description="Keep only so many pairs of one source, the best."
    )
    max_per_target: PositiveInt | None = Field(
        default=None, description="Keep only so many pairs of one target, the best."
    )
    pairs: dict[str, dict[str, Any]] = Field(
        default={},
        description="Other values for language pairs: `{en-ja: {max_ratio: 5.0}}`; `*-ja` and "
        "`en-*` stand for all pairs with one of them.",
    )

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the name of each file that cleaning reads besides the text."""
        for key in FILES:
            value = vars(self)[key]
            names = value if isinstance(value, list) else [] if value is None else [value]
            yield from ((key, name) for name in names)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        return _with_preset(section) if isinstance(section, Mapping) else section

    @field_validator("language_id")
    @classmethod
    def _check_language_id(cls, name: str | None) -> str | None:
        if name is None or name in LANGUAGE_IDS or re.fullmatch(EXTERNAL_PATTERN, name):
            return name
        known = ", ".join(LANGUAGE_IDS)
        raise ValueError(
            f"no language identifier {shown(name)}{nearest(name, LANGUAGE_IDS)}; there are "
            f"{known}, or `package.module:Name`"
        )

    @model_validator(mode="after")
    def _check(self) -> CleanConfig:
        errors = list(self._own_errors())
        if not errors:
            errors = list(self._pair_errors())
        if errors:
            raise FieldErrors(errors)
        return self

    def _own_errors(self) -> Iterator[tuple[str, str]]:
        yield from self._limit_errors()
        if self.nfkc and self.unicode_form is not None:
            yield "unicode_form", "give either it or nfkc, not both"
        if self.min_score is not None and not self.score_files:
            yield "min_score", "needs a score of each pair; give score_files"
        if self.score_column is not None and not self.score_files:
            yield "score_column", "is a column of score_files; give them"
        terms = [key for key in ("source_terms", "target_terms") if vars(self)[key] is not None]
        if self.max_terms is None and self.max_term_difference is None:
            yield from ((key, "give max_terms or max_term_difference, too") for key in terms)
        if self.max_terms is not None and not terms:
            yield "max_terms", "needs a list; give source_terms or target_terms"
        if self.language_id == "fasttext" and self.language_id_model is None:
            yield "language_id_model", "fasttext needs the file of a model, such as lid.176.bin"

    def _limit_errors(self) -> Iterator[tuple[str, str]]:
        for unit in ("words", "chars"):
            least, most = (vars(self)[f"{end}_{unit}"] for end in ("min", "max"))
            if least is not None and most is not None and least > most:
                yield f"min_{unit}", f"{least} is more than max_{unit} {most}"

    def _pair_errors(self) -> Iterator[tuple[str, str]]:
        for pair, changes in self.pairs.items():
            if len(pair.split("-")) < 2 or pair == "*-*":
                yield f"pairs.{pair}", "is not a language pair such as en-de, *-de or en-*"
                continue
            for path, message in override_errors(self, changes):
                yield f"pairs.{pair}.{path}", message


def _with_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with the values of its preset for the keys that it does not give."""
    preset = section.get("preset")
    known = PRESETS.get(preset) if isinstance(preset, str) else None  # type: ignore[call-overload]
    return {**(known or {}), **section}


def _merged(base: CleanConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    changes = _with_preset(changes)
    if changes.get("preset") is not None:  # normalization is the same for all text
        changes = {key: value for key, value in changes.items() if key not in NORMALIZATION}
    return {**base.model_dump(exclude={"pairs"}), **changes}


def override_errors(base: CleanConfig, changes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the mistakes in the changes of a language pair or a corpus: key and message.

    Args:
        base: what is changed.
        changes: some keys of a section `data.clean`, with other values.
    """
    fields = CleanConfig.model_fields
    wrong = set()
    for key in changes:
        if key not in fields:
            wrong.add(key)
            yield str(key), f"unknown key{nearest(str(key), fields)}"
        elif key in SHARED:
            wrong.add(key)
            yield key, "is the same for all training text; set it in data.clean itself"
    rest = {key: value for key, value in changes.items() if key not in wrong}
    try:
        CleanConfig.model_validate(_merged(base, rest))
    except ValidationError as error:
        from ds_seq.config.messages import findings

        for path, message in findings(error, _merged(base, rest), CleanConfig):
            yield ".".join(map(str, path)), message


def clean_of_corpus(
    base: CleanConfig,
    languages: tuple[str, str],
    changes: Mapping[str, Any] | None = None,
) -> CleanConfig:
    """Return the options of cleaning that apply to a corpus.

    Later ones win: `data.clean`, its `pairs` with one of the languages (`*-de`, then `en-*`), those
    with both (`en-de`), the `clean` of the corpus. A `preset` counts as the keys that it sets.

    Args:
        base: the section `data.clean`.
        languages: languages of source and target of the corpus.
        changes: the `clean` of the corpus; see `override_errors`.

    Raises:
        ValidationError: the changes are invalid, or invalid together with those of its pair.
    """
    source, target = languages
    config = base
    for pair in (f"*-{target}", f"{source}-*", f"{source}-{target}"):
        if pair in base.pairs:
            config = CleanConfig.model_validate(_merged(config, base.pairs[pair]))
    if changes:
        config = CleanConfig.model_validate(_merged(config, changes))
    return config.model_copy(update={"pairs": {}}) if config is base else config


def recorded_options(config: CleanConfig, normalization_only: bool = False) -> dict[str, Any]:
    """Return the options of cleaning as manifests record them.

    Only keys in `FIRST` are there in any case. So what was made without the later ones, by whatever
    version, has the same record. Presets are recorded as the values that they stand for.

    Args:
        config: options of cleaning.
        normalization_only: whether to leave out what does not apply to valid and test text.
    """
    defaults = later_defaults()
    return {
        key: value
        for key, value in config.model_dump(mode="json", exclude={"preset", "pairs"}).items()
        if key in FIRST or value != defaults[key]
        if key in NORMALIZATION or not normalization_only
    }


def later_defaults(keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Return what the keys mean that records leave out: their defaults.

    Args:
        keys: only these keys; None: all.
    """
    names = set(CleanConfig.model_fields if keys is None else keys) - FIRST - {"preset", "pairs"}
    fields = CleanConfig.model_fields
    return {name: fields[name].default for name in fields if name in names}
