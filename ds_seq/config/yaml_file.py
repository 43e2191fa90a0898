"""Read and write YAML by the scalar rules of YAML 1.2, and record the line of every key.

PyYAML follows YAML 1.1, where `no` (Norwegian) is false, `5e-4` is a string and `1:30` is 90.

A file may come from someone else, so its size is limited: in bytes, in levels, and in values, those
that aliases repeat included. (A few lines of aliases of aliases stand for billions of values.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from ds_seq.config.base import shown
from ds_seq.errors import UserError
from ds_seq.records import read_limited

KeyPath = tuple[str | int, ...]

_MOST_BYTES = 1 << 18
_MOST_LEVELS = 50
_MOST_VALUES = 10_000
_LONGEST_KEY = 200
_LONGEST_NUMBER = 40
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters other than tab and line breaks, and half characters."""

_TAG = "tag:yaml.org,2002:"
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
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


def dotted(path: KeyPath) -> str:
    """Return a key path as it is written in messages and overrides."""
    text = ""
    for item in path:
        text += f"[{item}]" if isinstance(item, int) else f".{item}"
    return text.removeprefix(".")


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
    """Composes and constructs within the limits above."""

    yaml_implicit_resolvers = _RESOLVERS
    # without !!timestamp, !!set and others, which no setting has
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _TYPES
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._levels = self._values = 0
        self._sizes: dict[str, int] = {}  # number of values below each anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and count its values, and those of an alias once more."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        before = self._values
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.anchors:
            if event.anchor not in self._sizes:
                raise ComposerError(None, None, "an alias of what contains it", mark)
            self._values += self._sizes[event.anchor]
        else:
            self._values += 1
        if self._values > _MOST_VALUES:
            problem = f"more than {_MOST_VALUES:,} values, counting repeated aliases"
            raise ComposerError(None, None, problem, mark)
        self._levels += 1
        if self._levels > _MOST_LEVELS:
            problem = f"nested more than {_MOST_LEVELS} levels deep"
            raise ComposerError(None, None, problem, mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._levels -= 1
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._sizes.setdefault(event.anchor, self._values - before)
        if isinstance(node, yaml.ScalarNode) and (match := _CONTROL.search(node.value)):
            problem = f"the control character U+{ord(match[0]):04X} in {shown(node.value)}"
            raise ComposerError(None, None, problem, mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; a tag that does not fit it is an error of the file."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, OverflowError):
            kind = node.tag.removeprefix(_TAG)
            problem = f"{shown(node.value)} is not of type {kind}"
            raise ConstructorError(None, None, problem, node.start_mark) from None


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > _LONGEST_NUMBER:
        problem = f"a number of {len(text):,} digits"
        raise ConstructorError(None, None, problem, node.start_mark)
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
        UserError: the file is missing, too large, not UTF-8, not YAML, or contains a key twice.
    """
    try:
        content = read_limited(path, _MOST_BYTES, pipes=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(content, path)


def parse_yaml(content: bytes, path: Path) -> YamlFile:
    """Parse the content of a file; see `read_yaml`.

    Args:
        content: content of the file.
        path: its name, for messages.
    """
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path}: its experiment is larger than {_MOST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
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
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise UserError(f"{path}:{line}: not valid YAML: the control character {code}") from None
    finally:
        if loader is not None:
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
            if len(key.value) > _LONGEST_KEY or not key.value.isprintable():
                raise UserError(
                    f"{file}:{line}: {shown(key.value)} is no key; expected one word in one line"
                )
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
