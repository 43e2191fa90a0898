"""Read and write YAML by the scalar rules of YAML 1.2, and record the line of every key.

PyYAML follows YAML 1.1, where `no` (Norwegian) is false, `5e-4` is a string and `1:30` is 90.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ds_seq.errors import UserError

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
# (tag, pattern, first characters), tried in this order: an integer also matches a float's pattern
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first_characters in _SCALARS:
        for first in first_characters:
            # PyYAML stores the empty scalar under the empty string
            table.setdefault(first.strip("\0"), []).append(
                (_TAG + tag, re.compile(rf"^(?:{pattern})$"))
            )
    return table


_RESOLVERS = _resolvers()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    prefixed = text[:2] in ("0o", "0x")
    return int(text, base=0) if prefixed else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(_TAG + "int", _construct_int)
_Loader.add_constructor(_TAG + "float", _construct_float)


class _Dumper(yaml.SafeDumper):
    # quotes any string that either version of YAML would not read back as a string
    yaml_implicit_resolvers = {
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_RESOLVERS.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_RESOLVERS}
    }


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: its mapping, and the line (from 1) of each key by path."""

    data: dict[str, Any]
    lines: Mapping[KeyPath, int]


def read_yaml(path: Path) -> YamlFile:
    """Read a file whose top level is a mapping.

    Raises:
        UserError: the file is missing, not UTF-8, not YAML, or contains a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: contains no mapping; expected lines of the form `key: value`")
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines, path)
        return YamlFile(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"{where}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


def _collect_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], file: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        key_lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (
                _TAG + "str",
                _TAG + "merge",
            ):
                raise UserError(f"{file}:{line}: a key must be text; put it in quotes")
            if key.value in key_lines:
                raise UserError(
                    f"{file}:{line}: {key.value!r} is already given in line {key_lines[key.value]}"
                )
            key_lines[key.value] = line
            lines[(*at, key.value)] = line
            _collect_lines(value, (*at, key.value), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*at, index)] = value.start_mark.line + 1
            _collect_lines(value, (*at, index), lines, file)


def parse_value(text: str) -> Any:
    """Parse one YAML value, as written after `key:`; used for the command line.

    Raises:
        yaml.YAMLError: `text` is not valid YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return `data` as block-style YAML in its order; `read_yaml` restores it unchanged."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
