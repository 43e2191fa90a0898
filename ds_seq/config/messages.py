"""Turn pydantic's errors into readable lines: file and line, key, problem, suggestion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ds_seq.config import wording
from ds_seq.config.base import EXTERNAL_TAG, Config, FieldErrors, shown
from ds_seq.config.customary import customary
from ds_seq.config.deepspeed_keys import OWNED, PASSED
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.schema import NO_TAG, has_short_form, paths_of_key, section_classes
from ds_seq.config.upgrade import MOVED
from ds_seq.config.yaml_file import KeyPath, dotted
from ds_seq.plugins import nearest

Origin = Callable[[KeyPath], str]


def error_lines(error: ValidationError, data: Any, origin: Origin) -> Iterator[str]:
    """Yield one line per error.

    Args:
        error: error raised when `data` was validated as an `ExperimentConfig`.
        data: data that was validated.
        origin: returns where a key was written, such as `my.yaml:12`.
    """
    reported = set()  # a value of several possible kinds fails for each of them
    for path, message in findings(error, data):
        line = f"{origin(path)}: {dotted(path)}: {message}"
        if line not in reported:
            reported.add(line)
            yield line


def findings(
    error: ValidationError, data: Any, section: type[Config] = ExperimentConfig
) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key path and the problem of each error.

    Args:
        error: error raised when `data` was validated as a `section`.
        data: data that was validated.
        section: the whole experiment, or a single section.
    """
    errors = error.errors()
    # a number out of range, where a list of numbers may stand, too, is not told that it is no list
    bounded = {details["loc"][:-1] for details in errors if details["type"] in wording.BOUNDS}
    for details in errors:
        if details["type"] != "list_type" or details["loc"][:-1] not in bounded:
            yield from _findings(details, data, section)


def _findings(
    details: ErrorDetails, data: Any, section: type[Config]
) -> Iterator[tuple[KeyPath, str]]:
    path, owner = _locate(details["loc"], data, section)
    if path[-1:] == ("name",) and has_short_form(path[:-1]) and not _is_section(path[:-1], data):
        path = path[:-1]
    kind, context = details["type"], details.get("ctx", {})
    cause = context.get("error")
    if kind == "extra_forbidden":
        yield path, f"unknown key{_hint(path, owner)}"
    elif kind == "missing" and path[-1] in owner.model_fields:
        yield path, f"missing. {owner.model_fields[str(path[-1])].description}"
    elif kind == "union_tag_invalid":
        tags = _quoted(context["expected_tags"])
        known = [tag for tag in tags if tag != EXTERNAL_TAG]
        outside = ", or `package.module:Name`" if EXTERNAL_TAG in tags else ""
        where = (*path, "name") if _is_section(path, data) else path
        given = shown(_at(where, data))
        meant = nearest(context["tag"], known)
        yield where, f"no {path[-1]} {given}{meant}; there are {', '.join(known)}{outside}"
    elif kind in ("union_tag_not_found", "model_type"):
        _, field = _field(path, owner, kind)
        wanted = wording.section(details["input"], field)
        yield path, f"should be {wanted}, not {shown(details['input'])}"
    elif kind == "string_pattern_mismatch":
        about = owner.model_fields[str(path[-1])].description
        yield path, f"{shown(details['input'])} does not fit. {about}"
    elif isinstance(cause, FieldErrors):
        for below, message in cause.errors:
            yield _below(path, below.split("."), data), message
    elif isinstance(cause, ValueError):
        yield path, str(cause)
    else:
        path, field = _field(path, owner, kind)
        value = _at(path, data)
        meant = nearest(str(value), _quoted(context.get("expected", "")))
        wanted = wording.wanted(details, field)
        yield path, f"should be {wanted}, not {shown(value)}{meant}"


def _below(path: KeyPath, keys: list[str], data: Any) -> KeyPath:
    """Return the path of keys below a section; the members of a list are numbers."""
    here = _at(path, data)
    for text in keys:
        key: str | int = int(text) if isinstance(here, list) and text.isdecimal() else text
        path, here = (*path, key), _child(here, key)
    return path


def _field(path: KeyPath, owner: type[Config], kind: str) -> tuple[KeyPath, FieldInfo | None]:
    """Return the field that contains the value at `path`, and the path to name.

    This is the path of the field if the error is one of a tuple as a whole, and if the field may
    be of several kinds, whose names pydantic adds to its locations.
    """
    names = [index for index, key in enumerate(path) if key in owner.model_fields]
    if not names:
        return path, None
    field = owner.model_fields[str(path[names[-1]])]
    after = path[names[-1] + 1 :]
    is_mapping = get_origin(field.annotation) is dict
    is_whole = wording.is_tuple(field) and kind in wording.TUPLE_ERRORS
    if is_whole or (not is_mapping and any(isinstance(key, str) for key in after)):
        path = path[: names[-1] + 1]
    return path, field


def _at(path: KeyPath, data: Any) -> Any:
    for key in path:
        data = _child(data, key)
    return data


def _quoted(text: Any) -> list[str]:
    """Return the quoted names in a list such as `'pre', 'learned' or 'rotary'`."""
    return re.findall(r"'([^']*)'", str(text))


def _locate(location: KeyPath, data: Any, section: type[Config]) -> tuple[KeyPath, type[Config]]:
    """Return the key path that the user wrote, and the class that contains its last key.

    pydantic's location also contains union tags, an index for a single raw split, and `[key]` where
    the name in a mapping is wrong.
    """
    path: list[str | int] = []
    owner = section
    choices: dict[str, type[Config]] = {}
    below = section  # the class of the next key
    here = data
    for item in location:
        if isinstance(item, str) and item in choices:
            below, choices = choices[item], {}
            continue
        if (isinstance(item, int) and isinstance(here, dict)) or item == "[key]":
            continue
        path.append(item)
        here = _child(here, item)
        owner = below
        if isinstance(item, str) and item in owner.model_fields:
            choices = section_classes(owner.model_fields[item].annotation)
            below = choices.pop(NO_TAG, owner)
    return tuple(path), owner


def _is_section(path: KeyPath, data: Any) -> bool:
    """Return whether a mapping was written at `path`, rather than the name of one."""
    return isinstance(_at(path, data), dict)


def _child(node: Any, key: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(key)
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return node[key]
    return None


def _hint(path: KeyPath, owner: type[Config]) -> str:
    """Return a hint about what an unknown key was meant to be, or where it belongs."""
    if path in MOVED:
        return f"; it is now {dotted(MOVED[path][0])}; give only that"
    key = str(path[-1]).replace("-", "_")
    elsewhere = paths_of_key(key)
    if dotted(path) in elsewhere:
        if key == "options":
            return f"; only an external {path[-2]} (`package.module:Name`) takes options"
        field = owner.model_fields["name"]
        names = get_args(field.annotation)  # of one of ours
        usual = names[0] if field.is_required() and names else field.default
        return f"; {usual if names else 'an external plug-in'} does not accept it"
    if len(elsewhere) in (1, 2):
        return f"; it belongs to {' or '.join(elsewhere)}"
    equivalent = customary(key, dotted(path[:-1])) or OWNED.get(key)
    if equivalent is not None:
        return f"; ds_seq's name for it is {equivalent}"
    for group, below in PASSED.items():
        if key == group or (isinstance(below, dict) and key in below):
            return "; it belongs in the DeepSpeed JSON that train.deepspeed names"
    return nearest(key, owner.model_fields)
