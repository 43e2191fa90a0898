"""Arguments of `prepare_data/*.py` that name parallel text in any form that `data.raw` takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ds_seq.config.base import Config
from ds_seq.config.messages import findings
from ds_seq.config.raw_text import text_files
from ds_seq.config.text_files import SplitConfig
from ds_seq.config.yaml_file import parse_value
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath
from ds_seq.text.raw import pair_path

Section = TypeVar("Section", bound=Config)
_NEED_KEYS = ("jsonl", "tmx", "xml", "folder")
_NOT_OF_A_FILE = ("alignments", "languages", "tag", "target_tag")


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two files, or `--text` instead of them."""
    for name in ("source", "target"):
        parser.add_argument(
            name, nargs="?", help=f"{name} text, one sentence per line, also .gz, .bz2, .xz or .zst"
        )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of data.raw.train, for text in another form than these two files: "
        "--text tsv=web.tsv --text columns=[3,4]; see configs/OPTIONS.md",
    )


def texts_of(arguments: argparse.Namespace, split: str, *, counts_invalid: bool) -> list[PairPath]:
    """Return the text that the arguments of `add_text_arguments` name.

    Args:
        arguments: parsed arguments; `languages` are the language codes, or None.
        split: `train`, `valid` or `test`: a folder has it by this name.
        counts_invalid: whether pairs that are not UTF-8 are dropped and counted, unless `--text`
            says something else; otherwise they are errors.

    Raises:
        UserError: none is named, or the arguments contradict each other.
    """
    values = {key: vars(arguments)[key] for key in ("source", "target")}
    values = {key: value for key, value in values.items() if value is not None}
    if bool(values) == bool(arguments.text) or len(values) == 1:
        raise UserError("give the text either as two files, SOURCE and TARGET, or with --text")
    entry = section_of(SplitConfig, "--text", arguments.text, values)
    for key in _NOT_OF_A_FILE:
        if vars(entry)[key]:
            raise UserError(f"--text {key}: belongs to an experiment (`ds-seq prepare`); remove it")
    kind = next((key for key in _NEED_KEYS if vars(entry)[key] is not None), None)
    if kind is not None and entry.keys is None and arguments.languages is None:
        raise UserError(
            f"--text {kind}: give --languages SOURCE TARGET, or --text keys=[SOURCE,TARGET]"
        )
    if entry.invalid_utf8 is None:
        entry = entry.model_copy(update={"invalid_utf8": "drop" if counts_invalid else "stop"})
    languages = tuple(arguments.languages or ("source", "target"))
    found = text_files(entry, split, (languages[0], languages[1]), key="--text")
    return [pair_path(text, counts_invalid=counts_invalid) for text in found]


def section_of(
    kind: type[Section], flag: str, settings: Sequence[str], values: Mapping[str, Any]
) -> Section:
    """Return a section of an experiment from arguments `FLAG KEY=VALUE`.

    Args:
        kind: class of the section.
        flag: the flag, for messages.
        settings: its values as typed, `KEY=VALUE`; the value is in YAML.
        values: values that other arguments give; those of `settings` win.

    Raises:
        UserError: a setting is invalid; one line for each.
    """
    values = dict(values)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"{flag} {text}: does not have the form KEY=VALUE")
        try:
            values[key] = parse_value(value)
        except yaml.YAMLError:
            raise UserError(f"{flag} {text}: the value is not YAML; quote it?") from None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = findings(error, values, kind)
        raise UserError(
            "\n".join(f"{flag} {'.'.join(map(str, path))}: {message}" for path, message in lines)
        ) from None


def files_of(texts: Sequence[PairPath]) -> list[Path]:
    """Return the files of texts, each once."""
    return list(dict.fromkeys(path for text in texts for path in text.files))
