"""Load an `ExperimentConfig` from an experiment file, and write it back.

Precedence: command-line override, experiment file, its `extends` parent, schema default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from copy import deepcopy
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ds_seq.config.base import shown
from ds_seq.config.experiment import STAND_INS, ExperimentConfig
from ds_seq.config.outside import Sections, check_trusted, outside_names
from ds_seq.config.paths import find_parent, resolved
from ds_seq.config.schema import has_short_form
from ds_seq.config.text_files import FORMS
from ds_seq.config.upgrade import upgrade
from ds_seq.config.yaml_file import (
    KeyPath,
    YamlFile,
    dotted,
    parse_value,
    parse_yaml,
    read_yaml,
    to_yaml,
)
from ds_seq.errors import UserError
from ds_seq.names import HUGGINGFACE
from ds_seq.plugins import trust

EXTENDS = "extends"
_COMMAND_LINE = "command line"
_MOST_ERRORS = 30
_MOST_PARENTS = 20

_REQUIRED = {"name": "x", "data": {"source_lang": "x", "target_lang": "y", "dir": "x"}}
"""Valid values for all keys without a default."""


class _Tree:
    """Merged raw values and where each of them was written."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data: dict[str, Any] = {}
        self._origins: dict[KeyPath, str] = {}

    def merge(self, data: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        """Merge `data` over the present values: mappings are merged, other values are replaced.

        Old keys are renamed first, so that a new key in a later file takes precedence over them.
        """
        data, moved = upgrade(data)
        for new, old in moved.items():
            where = origins.get(old, str(self.file))
            origins = {new[:1]: where, **origins, new: where}
        self._merge(self.data, data, (), origins)

    def _merge(
        self, below: dict[str, Any], above: dict[str, Any], at: KeyPath, origins: dict[KeyPath, str]
    ) -> None:
        inherited = self._origins.get(at, str(self.file))
        for key, value in above.items():
            path = (*at, key)
            self._origins[path] = origins.get(path, inherited)
            old = below.get(key)
            if isinstance(value, dict):
                old = _as_section(old, path)
            if isinstance(old, dict) and isinstance(value, dict) and not _other_plugin(old, value):
                below[key] = old
                self._merge(old, value, path, origins)
            else:
                below[key] = value
                self._replace_origins(path, origins)

    def _replace_origins(self, path: KeyPath, origins: dict[KeyPath, str]) -> None:
        depth = len(path)
        for known in [p for p in self._origins if p[:depth] == path and len(p) > depth]:
            del self._origins[known]
        self._origins.update((p, where) for p, where in origins.items() if p[:depth] == path)

    def origin(self, path: KeyPath) -> str:
        """Return where the key at `path`, or the nearest enclosing section, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._origins:
                return self._origins[path[:length]]
        return str(self.file)


def _as_section(value: Any, path: KeyPath) -> Any:
    """Expand a name given in place of a section, so that more keys can be merged into it."""
    return {"name": value} if isinstance(value, str) and has_short_form(path) else value


def _other_plugin(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether `new` is another plug-in or form of text, which old options do not fit."""
    if "name" in new and "name" in old and new["name"] != old["name"]:
        return True
    before, now = ({name for name in FORMS if name in section} for section in (old, new))
    return bool(before and now) and before.isdisjoint(now)


def load_experiment(
    path: str | Path, overrides: Iterable[str] = (), runs: Sections = ()
) -> ExperimentConfig:
    """Read and check an experiment file.

    Code from outside ds_seq that an override names is trusted: the user has typed that name. A name
    in a file is not, because files are passed around; see `ds_seq.plugins.trust`.

    The files that it names are found by the rule of `ds_seq.config.paths`. They may be missing: a
    run folder that was copied elsewhere translates without them.

    Args:
        path: YAML file (JSON is YAML too).
        overrides: `dotted.key=value`, the value in YAML.
        runs: sections whose code from outside ds_seq is about to run, if they name any.

    Raises:
        UserError: the experiment is invalid, or names code that is not trusted; lists every error,
            one per line.
    """
    return _validated(_read_with_parents(Path(path)), overrides, runs)


def parse_experiment(content: bytes, path: Path, runs: Sections = ()) -> ExperimentConfig:
    """Check an experiment that is stored in another file, such as an export.

    Args:
        content: the experiment in YAML.
        path: name for messages.
        runs: see `load_experiment`.

    Raises:
        UserError: see `load_experiment`.
    """
    tree = _Tree(path)
    file = parse_yaml(content, path)
    tree.merge(file.data, {key: f"{path}: line {line}" for key, line in file.lines.items()})
    return _validated(tree, (), runs)


def read_experiment(
    experiment: str | Path | Mapping[str, Any] | ExperimentConfig,
    overrides: Iterable[str] = (),
    runs: Sections = (),
) -> ExperimentConfig:
    """Read and check an experiment given as a file, a mapping or a config.

    Args:
        experiment: a file (see `load_experiment`), its content as a mapping, or an experiment.
        overrides: see `load_experiment`.
        runs: see `load_experiment`.

    Raises:
        UserError: see `load_experiment`.
    """
    if isinstance(experiment, str | Path):
        return load_experiment(experiment, overrides, runs)
    if isinstance(experiment, ExperimentConfig):
        experiment = experiment.model_dump(mode="json")
    tree = _Tree(Path("experiment"))
    tree.merge(deepcopy(dict(experiment)), {})  # overrides must not change the caller's mapping
    return _validated(tree, overrides, runs)


def _validated(tree: _Tree, overrides: Iterable[str], runs: Sections) -> ExperimentConfig:
    typed = _apply_overrides(tree, overrides)
    _expand_model(tree)
    _expand_encoder_input(tree)
    try:
        config = ExperimentConfig.model_validate(tree.data)
    except ValidationError as error:
        raise _mistakes(tree, [error, *_errors_between(tree.data, error)]) from None
    trust(name for path, name in outside_names(config) if _at(path, typed) == name)
    check_trusted(config, runs, lambda path: f"{tree.origin(path)}: {dotted(path)}")
    return config


def _mistakes(
    tree: _Tree, errors: Iterable[ValidationError], first: Iterable[str] = ()
) -> UserError:
    """Return the lines about errors, after those that are known already."""
    from ds_seq.config.messages import error_lines  # a valid file needs no messages

    found = (line for each in errors for line in error_lines(each, tree.data, tree.origin))
    every = chain(first, found)
    lines = list(islice(every, _MOST_ERRORS))
    if next(every, None) is not None:
        lines.append(f"{tree.file}: has more mistakes; the first {_MOST_ERRORS} are above")
    return UserError("\n".join(lines))


def _expand_model(tree: _Tree) -> None:
    """Replace a model of transformers by what its folder says.

    Raises:
        UserError: the folder cannot be read, or other settings contradict it; lists the mistakes of
            other sections, too.
    """
    model = tree.data.get("model")
    if not isinstance(model, Mapping) or not ("path" in model or model.get("name") == HUGGINGFACE):
        return
    from ds_seq.config.huggingface.expand import expanded  # few experiments have one

    tree.data, errors = expanded(tree.data)
    if not errors:
        return
    lines = [f"{tree.origin(path)}: {dotted(path)}: {message}" for path, message in errors]
    replaced = {"model"} - tree.data.keys()
    further: list[ValidationError] = []
    try:
        ExperimentConfig.model_validate(tree.data, context={STAND_INS: replaced})
    except ValidationError as error:
        further = [error, *_errors_between(tree.data, error, replaced)]
    raise _mistakes(tree, further, lines)


def _expand_encoder_input(tree: _Tree) -> None:
    """Add the section of the language model that `model.encoder_input` names.

    Raises:
        UserError: its run cannot be read.
    """
    model = tree.data.get("model")
    section = model.get("encoder_input") if isinstance(model, Mapping) else None
    given = section.get("model", {}) if isinstance(section, Mapping) else None
    # a stored experiment has the whole section, and does not need the run any more
    if section is None or not isinstance(given, Mapping) or "name" in given:
        return
    from ds_seq.config.language_model import model_of_run  # few experiments have one

    path = section.get("path")
    if isinstance(path, str) and path:  # else the schema says what is wrong
        at = ("model", "encoder_input", "path")
        try:
            found = model_of_run(path)
        except UserError as error:
            raise UserError(f"{tree.origin(at)}: {dotted(at)}: {error}") from None
        merged = {**found, **given}
        tree.data["model"] = {**tree.data["model"], "encoder_input": {**section, "model": merged}}


def _errors_between(
    data: Mapping[str, Any], error: ValidationError, replaced: Set[str] = frozenset()
) -> list[ValidationError]:
    """Run the cross-section checks for the sections that are valid.

    pydantic skips these checks if any section is invalid, so the experiment is validated once more
    with a valid stand-in for each invalid section.

    Args:
        data: the experiment.
        error: its errors.
        replaced: sections that have a stand-in already.
    """
    wrong = {str(details["loc"][0]) for details in error.errors() if details["loc"]}
    if not wrong:
        return []  # the cross-section checks themselves have failed
    sound = {key: value for key, value in data.items() if key not in wrong}
    try:
        ExperimentConfig.model_validate(
            {**_REQUIRED, **sound}, context={STAND_INS: wrong | replaced}
        )
    except ValidationError as further:
        return [further]
    return []


def dump(config: ExperimentConfig) -> str:
    """Return the resolved experiment as YAML; loading it restores the same experiment."""
    return to_yaml(config.model_dump(mode="json"))


def _read_with_parents(file: Path) -> _Tree:
    files: list[tuple[Path, YamlFile]] = []
    current: Path | None = file
    while current is not None:
        if current.resolve() in [seen.resolve() for seen, _ in files]:
            raise UserError(f"{current}: {EXTENDS}: the files extend one another in a cycle")
        if len(files) == _MOST_PARENTS:
            raise UserError(f"{current}: {EXTENDS}: more than {_MOST_PARENTS} files extend another")
        content = read_yaml(current)
        files.append((current, content))
        parent = content.data.pop(EXTENDS, None)
        if parent is not None and not isinstance(parent, str):
            raise UserError(
                f"{current}: {EXTENDS}: should be the name of one file, not {shown(parent)}"
            )
        current = find_parent(parent, current) if parent is not None else None
    tree = _Tree(file)
    for source, content in reversed(files):
        tree.merge(
            resolved(content.data, source),
            {key: f"{source}:{line}" for key, line in content.lines.items()},
        )
    return tree


def _at(path: KeyPath, data: Any) -> Any:
    """Return the value at a path in raw settings; for the name of a section in short form, that."""
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return data if key == "name" and isinstance(data, str) else None
    return data


def _apply_overrides(tree: _Tree, overrides: Iterable[str]) -> dict[str, Any]:
    """Merge the overrides into the tree, and return them alone."""
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = tuple(key.split("."))
        if not equals or not all(keys):
            problems.append(f"{_COMMAND_LINE}: {override!r} does not have the form key.key=value")
            continue
        try:
            value = parse_value(text)
        except yaml.YAMLError:
            problems.append(f"{_COMMAND_LINE}: {key}: {shown(text)} is not a YAML value; quote it?")
            continue
        section = data
        for depth, name in enumerate(keys[:-1], start=1):
            inner = _as_section(section.get(name), keys[:depth])
            section[name] = inner if isinstance(inner, dict) else {}
            section = section[name]
        section[keys[-1]] = value
        origins.update((keys[:length], _COMMAND_LINE) for length in range(1, len(keys) + 1))
    if problems:
        raise UserError("\n".join(problems))
    tree.merge(resolved(data, tree.file, on_command_line=True), origins)
    return data
