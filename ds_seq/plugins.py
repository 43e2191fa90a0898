"""Look up a plug-in by name: a built-in one, or an external `package.module:Name`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ds_seq.errors import UserError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def find_plugin(kind: str, name: str, table: Mapping[str, T], where: str = "") -> T:
    """Return the entry `name` of `table`, or the object that an external name refers to.

    Args:
        kind: kind of plug-in, for messages: `criterion`, `model`, ...
        name: key of the table, or `package.module:Name`.
        table: built-in plug-ins.
        where: setting that contains the name, for messages; empty means `<kind>.name`.
    """
    where = where or f"{kind}.name"
    if ":" in name:
        external: T = import_object(kind, name, where)
        return external
    if name not in table:
        raise UserError(
            f"{where}: no {kind} {name!r}{nearest(name, table)}; there are "
            f"{', '.join(sorted(table))}, or `package.module:Name`"
        )
    return table[name]


def import_object(kind: str, name: str, where: str = "") -> Any:
    """Import `package.module:Name`. An error inside that module keeps its traceback."""
    where = where or f"{kind}.name"
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # a missing import *inside* the plug-in is a bug of the plug-in, not a wrong name
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{where}: cannot import {module_name!r} of {name!r}: no module {error.name!r}; "
            "install it, or add its folder to PYTHONPATH"
        ) from None
    members = vars(module)
    if attribute not in members:
        raise UserError(
            f"{where}: module {module_name!r} has no {attribute!r}{nearest(attribute, members)}"
        )
    return members[attribute]
