"""What to write instead of a value of the wrong kind, in the words of an experiment file."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ds_seq.config.base import shown
from ds_seq.config.schema import NO_TAG, section_classes

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "string_too_short": "text that is not empty",
    "too_short": "a list that is not empty",
    "dict": "a mapping, such as {key: value}",
}
"""What to write, by the type of the error or by its first word."""

BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}

TUPLE_ERRORS = ("tuple_type", "missing", "too_long")
"""Errors of a tuple as a whole: it is none, or has the wrong number of values."""


def wanted(details: ErrorDetails, field: FieldInfo | None) -> str:
    """Return what should be written, such as `a whole number`.

    Args:
        details: error of a value that has the wrong kind or is out of range.
        field: the field that contains the value, or None if it is not known.
    """
    kind, value = str(details["type"]), details["input"]
    if kind in BOUNDS:
        key, relation = BOUNDS[kind]
        bound = details["ctx"][key]
        return f"{relation} {bound:g}" if isinstance(bound, float) else f"{relation} {bound}"
    if field is not None and kind in TUPLE_ERRORS and is_tuple(field):
        return _tuple(field)
    if field is not None and (members := _alternatives(field)):
        return " or ".join(members)
    if kind == "list_type":
        return _list(value, field)
    words = _KINDS.get(kind) or _KINDS.get(kind.split("_")[0])
    if words is None:  # an error with a sentence of its own
        return str(details["msg"]).removeprefix("Input should be ")
    if words == "text" and isinstance(value, bool | int | float):
        return f'text; put it in quotes: "{shown(value)}"'
    accepts_null = field is not None and type(None) in get_args(field.annotation)
    return f"{words} or null" if accepts_null else words


def is_tuple(field: FieldInfo) -> bool:
    """Return whether the field holds a fixed number of values."""
    return get_origin(_without_null(field.annotation)) is tuple


def _tuple(field: FieldInfo) -> str:
    """Return how to write a fixed number of values."""
    members = get_args(_without_null(field.annotation))
    if set(members) == {str}:
        return f"{len(members)} names in a list, such as [{', '.join('abcd'[: len(members)])}]"
    return f"{len(members)} numbers, such as {json.dumps(field.default)}"


def _without_null(annotation: Any) -> Any:
    """Return the only kind of a value besides null, or the annotation as it is."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return members[0] if is_union and len(members) == 1 else annotation


def section(value: Any, field: FieldInfo | None) -> str:
    """Return how to write a section where something else was written.

    Args:
        value: what was written.
        field: the field of the section, or None if it is not known.
    """
    names = {} if field is None else section_classes(field.annotation)
    if isinstance(value, str) and value in names:
        return f"a section; write {{name: {value}}}"
    accepts_null = field is not None and type(None) in get_args(field.annotation)
    return "a section (`key: value` lines)" + (" or null" if accepts_null else "")


def _list(value: Any, field: FieldInfo | None) -> str:
    sections = {} if field is None else section_classes(field.annotation)
    if NO_TAG in sections:
        names = [*sections[NO_TAG].model_fields]  # the first are the usual ones
        keys = ", ".join([*(f"{name}: ..." for name in names[:2]), *(["..."] if names[2:] else [])])
        return f"a section {{{keys}}} or a list of them"
    is_member = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    return f"a list; write [{value}]" if is_member else "a list, such as [a, b]"


def _alternatives(field: FieldInfo) -> list[str]:
    """Return the kinds of a field that may be one value or a list of them, else nothing."""
    members = [member for member in get_args(field.annotation) if member is not type(None)]
    is_union = get_origin(field.annotation) in (Union, types.UnionType)
    if not is_union or len(members) < 2:
        return []
    kinds = {str: "text", int: "a whole number", float: "a number", list: "a list of them"}
    plain = [_without_bounds(member) for member in members]
    return [kinds[kind] for kind in plain if kind in kinds] if len(plain) > 1 else []


def _without_bounds(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation
