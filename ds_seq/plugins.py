"""Look up a plug-in by name: a built-in one, or an external `package.module:Name`.

Code from outside ds_seq runs only if its very name is trusted: a run folder, an export or an
experiment file may come from someone else. `import_object` is the only place that imports such
code, so nothing gets past this rule.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any, TypeVar

from ds_seq.errors import UserError

T = TypeVar("T")

EXTERNAL_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def trust(names: Iterable[str]) -> None:
    """Allow code from outside ds_seq to run, until the end of the command or of `trusting`.

    Args:
        names: exact names, `package.module:Name`.

    Raises:
        UserError: a name does not have this form.
    """
    added = frozenset(names)
    for name in sorted(added):
        if not re.fullmatch(EXTERNAL_PATTERN, name):
            raise UserError(
                f"--trust {name}: is not the name of a plug-in; give the exact "
                "`package.module:Name` that the experiment has"
            )
    _trusted.set(_trusted.get() | added)


@contextmanager
def trusting(names: Iterable[str]) -> Iterator[None]:
    """Allow code from outside ds_seq to run in this block; see `trust`."""
    if isinstance(names, str):
        names = [names]
    token = _trusted.set(_trusted.get())
    try:
        trust(names)
        yield
    finally:
        _trusted.reset(token)


def is_trusted(name: str) -> bool:
    """Return whether the code with this name may run."""
    return name in _trusted.get()


def untrusted(name: str, where: str) -> str:
    """Return the message for a name that is not trusted: what would run, and how to allow it.

    Args:
        name: the name, `package.module:Name`.
        where: place that contains the name.
    """
    module, _, attribute = name.partition(":")
    return (
        f"{where}: {name!r} is code from outside ds_seq and was not run: it would import {module} "
        f"({_location(module)}) and call {attribute}; if you trust it, add --trust {name}, or "
        f"trust={[name]!r} in Python"
    )


def find_plugin(kind: str, name: str, table: Mapping[str, T], where: str = "") -> T:
    """Return the entry `name` of `table`, or the object that an external name refers to.

    Args:
        kind: kind of plug-in, for messages: `criterion`, `model`, ...
        name: key of the table, or `package.module:Name`.
        table: built-in plug-ins.
        where: setting that contains the name, for messages; empty means `<kind>.name`.

    Raises:
        UserError: there is no such plug-in, or it is external and not trusted.
    """
    where = where or f"{kind}.name"
    if ":" in name:
        external: T = import_object(name, where)
        return external
    if name not in table:
        raise UserError(
            f"{where}: no {kind} {name!r}{nearest(name, table)}; there are "
            f"{', '.join(sorted(table))}, or `package.module:Name`"
        )
    return table[name]


def import_object(name: str, where: str) -> Any:
    """Import `package.module:Name`. An error inside that module keeps its traceback.

    Args:
        name: the name.
        where: setting that contains the name, for messages.

    Raises:
        UserError: the name is not trusted, or there is no such module or object.
    """
    if not is_trusted(name):
        raise UserError(untrusted(name, where))
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


def _location(module: str) -> str:
    """Return the file of a module without importing any part of it."""
    package, *below = module.split(".")
    try:
        spec = find_spec(package)  # imports nothing, unlike for a name with dots
        for part in below:
            if spec is None:
                break
            folders = list(spec.submodule_search_locations or [])
            spec = PathFinder.find_spec(f"{spec.name}.{part}", folders)
    except (ImportError, ValueError):
        spec = None
    return "not found here" if spec is None else spec.origin or "a folder of modules"
