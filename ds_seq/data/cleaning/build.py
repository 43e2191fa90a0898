"""Options of cleaning from an experiment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ds_seq.config.clean import CleanConfig, clean_of_corpus
from ds_seq.config.messages import findings
from ds_seq.data.cleaning import filters, repairs
from ds_seq.data.cleaning.filters import Filter, TermList
from ds_seq.data.cleaning.languages import OtherLanguage
from ds_seq.data.cleaning.options import CleanOptions, Corpus, ScoreFile
from ds_seq.data.cleaning.repairs import Repair
from ds_seq.errors import UserError
from ds_seq.text.languages import letters
from ds_seq.text.lines import PairPath, read_lines
from ds_seq.text.normalize import Normalizer


def build_corpus(
    name: str,
    inputs: Sequence[PairPath],
    languages: tuple[str, str],
    base: CleanConfig,
    changes: Mapping[str, Any] | None = None,
) -> Corpus:
    """Return a corpus with the options of cleaning that apply to it.

    Args:
        name: its name.
        inputs: its pairs of files.
        languages: languages of source and target.
        base: the section `data.clean`.
        changes: the `clean` of the corpus, some keys of such a section.

    Raises:
        UserError: the changes are invalid, or a file that they name cannot be read.
    """
    try:
        clean = clean_of_corpus(base, languages, changes)
    except ValidationError as error:
        data = {**base.model_dump(), **(changes or {})}
        lines = [
            f"the corpus {name}: clean.{'.'.join(map(str, path))}: {message}"
            for path, message in findings(error, data, CleanConfig)
        ]
        raise UserError("\n".join(lines)) from None
    scores = [ScoreFile(Path(path), clean.score_column) for path in clean.score_files]
    return Corpus(name, tuple(inputs), build_clean_options(clean, languages), tuple(scores))


def build_clean_options(clean: CleanConfig, languages: tuple[str, str]) -> CleanOptions:
    """Return the options of cleaning for a pair of languages.

    Args:
        clean: options, after those of pairs and corpora.
        languages: languages of source and target.

    Raises:
        UserError: a list of terms or patterns cannot be read.
    """
    return CleanOptions(
        Normalizer(clean.nfkc, clean.fold_spaces, clean.unicode_form, clean.punctuation),
        clean.min_words,
        clean.max_words,
        clean.max_ratio,
        clean.drop_identical,
        clean.drop_duplicates,
        clean.duplicate_key,
        _repairs(clean),
        tuple(_filters(clean, languages)),
        clean.min_score,
        clean.max_per_source,
        clean.max_per_target,
    )


def _repairs(clean: CleanConfig) -> tuple[Repair, ...]:
    found: list[Repair] = []
    if clean.unescape:
        found.append(repairs.Unescape())
    if clean.fix_wiki:
        found.append(repairs.FixWiki())
    if clean.patterns is not None:
        found.append(repairs.RemovePatterns(_read_patterns(Path(clean.patterns))))
    return tuple(found)


def _filters(clean: CleanConfig, languages: tuple[str, str]) -> Iterator[Filter]:
    """Yield the filters, the fast ones first."""
    script = (letters(languages[0]), letters(languages[1]))
    kinds: tuple[tuple[Any, Callable[[Any], Filter]], ...] = (
        (clean.min_chars, filters.TooFewChars),
        (clean.max_chars, filters.TooManyChars),
        (clean.max_char_ratio, filters.CharRatio),
        (clean.max_word_chars, filters.LongWord),
        (clean.drop_url_mismatch or None, lambda _: filters.AddressMismatch()),
        (clean.min_number_overlap, filters.NumberMismatch),
        (clean.max_repeated_chars, filters.RepeatedChars),
        (clean.max_repeated_words, filters.RepeatedWords),
        (clean.min_alphabet_words, partial(filters.AlphabetWords, *script)),
        (clean.min_alphabet_chars, partial(filters.AlphabetChars, *script)),
        (clean.min_unique_ratio, partial(filters.UniqueRatio, clean.unique_order)),
    )
    for value, kind in kinds:
        if value is not None:
            yield kind(value)
    names = (clean.source_terms, clean.target_terms)
    source, target = (_read_terms(None if name is None else Path(name)) for name in names)
    if clean.max_terms is not None:
        yield filters.Terms(source, target, clean.max_terms)
    if clean.max_term_difference is not None and None not in names:
        yield filters.TermDifference(source, target, clean.max_term_difference)
    if clean.language_id is not None:
        model = clean.language_id_model or ""
        yield OtherLanguage(*languages, clean.language_id, model, clean.min_language_score)


def _read_terms(path: Path | None) -> TermList:
    lines = [] if path is None else read_lines(path)
    return TermList(tuple(line.strip() for line in lines if line.strip()))


def _read_patterns(path: Path) -> tuple[str, ...]:
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                re.compile(line)
            except re.error as error:
                raise UserError(
                    f"{path}: line {number}: is no regular expression: {error}"
                ) from None
            found.append(line)
    return tuple(found)
