"""Load an `ExperimentConfig` from an experiment file, and write it back.

Precedence: command-line override, experiment file, its `extends` parent, schema default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ds_seq.config.experiment import STAND_INS, ExperimentConfig
from ds_seq.config.messages import error_lines
from ds_seq.config.schema import has_short_form
from ds_seq.config.upgrade import upgrade
from ds_seq.config.yaml_file import KeyPath, YamlFile, parse_value, read_yaml, to_yaml
from ds_seq.errors import UserError

EXTENDS = "extends"

_REQUIRED = {"name": "x", "data": {"source_lang": "x", "target_lang": "x", "dir": "x"}}
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
        for key, value in above.items():
            path = (*at, key)
            self._origins[path] = origins.get(path, str(self.file))
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
    """Return whether `new` names a different plug-in, for which the old options do not apply."""
    return "name" in new and "name" in old and new["name"] != old["name"]


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read and check an experiment file.

    A relative `train.deepspeed` is searched for in the working folder, then in the folder of the
    experiment file and in the two folders above it; the first match replaces it. The file may be
    missing: a run folder that was copied elsewhere translates without it.

    Args:
        path: YAML file (JSON is YAML too).
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        UserError: the experiment is invalid; lists every error, one per line.
    """
    return _validated(_read_with_parents(Path(path)), overrides)


def read_experiment(
    experiment: str | Path | Mapping[str, Any] | ExperimentConfig, overrides: Iterable[str] = ()
) -> ExperimentConfig:
    """Read and check an experiment given as a file, a mapping or a config.

    Args:
        experiment: a file (see `load_experiment`), its content as a mapping, or an experiment.
        overrides: see `load_experiment`.

    Raises:
        UserError: the experiment is invalid; lists every error, one per line.
    """
    if isinstance(experiment, str | Path):
        return load_experiment(experiment, overrides)
    if isinstance(experiment, ExperimentConfig):
        experiment = experiment.model_dump(mode="json")
    tree = _Tree(Path("experiment"))
    tree.merge(deepcopy(dict(experiment)), {})  # overrides must not change the caller's mapping
    return _validated(tree, overrides)


def _validated(tree: _Tree, overrides: Iterable[str]) -> ExperimentConfig:
    _apply_overrides(tree, overrides)
    try:
        config = ExperimentConfig.model_validate(tree.data)
    except ValidationError as error:
        lines = [
            line
            for each in (error, *_errors_between(tree.data, error))
            for line in error_lines(each, tree.data, tree.origin)
        ]
        raise UserError("\n".join(lines)) from None
    ds_json = _find_near(config.train.deepspeed, tree.file)
    if ds_json is None:
        return config
    train = config.train.model_copy(update={"deepspeed": str(ds_json)})
    return config.model_copy(update={"train": train})


def _errors_between(data: Mapping[str, Any], error: ValidationError) -> list[ValidationError]:
    """Run the cross-section checks for the sections that are valid.

    pydantic skips these checks if any section is invalid, so the experiment is validated once more
    with a valid stand-in for each invalid section.
    """
    wrong = {str(details["loc"][0]) for details in error.errors() if details["loc"]}
    if not wrong:
        return []  # the cross-section checks themselves have failed
    sound = {key: value for key, value in data.items() if key not in wrong}
    try:
        ExperimentConfig.model_validate({**_REQUIRED, **sound}, context={STAND_INS: wrong})
    except ValidationError as further:
        return [further]
    return []


def dump(config: ExperimentConfig) -> str:
    """Return the resolved experiment as YAML; loading it restores the same experiment."""
    return to_yaml(config.model_dump(mode="json"))


def _read_with_parents(file: Path) -> _Tree:
    chain: list[tuple[Path, YamlFile]] = []
    current: Path | None = file
    while current is not None:
        if current.resolve() in [seen.resolve() for seen, _ in chain]:
            raise UserError(f"{current}: {EXTENDS}: the files extend one another in a cycle")
        content = read_yaml(current)
        chain.append((current, content))
        parent = content.data.pop(EXTENDS, None)
        if parent is not None and not isinstance(parent, str):
            raise UserError(f"{current}: {EXTENDS}: should be the name of one file, not {parent!r}")
        current = current.parent / parent if parent is not None else None
    tree = _Tree(file)
    for source, content in reversed(chain):
        tree.merge(content.data, {key: f"{source}:{line}" for key, line in content.lines.items()})
    return tree


def _apply_overrides(tree: _Tree, overrides: Iterable[str]) -> None:
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    problems = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            problems.append(f"command line: {override!r} does not have the form key.key=value")
            continue
        try:
            value = parse_value(text)
        except yaml.YAMLError:
            problems.append(f"command line: {dotted}: {text!r} is not a YAML value; quote it?")
            continue
        section = data
        for depth, key in enumerate(keys[:-1], start=1):
            inner = _as_section(section.get(key), keys[:depth])
            section[key] = inner if isinstance(inner, dict) else {}
            section = section[key]
        section[keys[-1]] = value
        origins.update((keys[:length], "command line") for length in range(1, len(keys) + 1))
    if problems:
        raise UserError("\n".join(problems))
    tree.merge(data, origins)


def _find_near(name: str | None, experiment: Path) -> Path | None:
    if name is None:
        return None
    folder = experiment.absolute().parent
    places = (Path(), folder, *folder.parents[:2])
    return next((place / name for place in places if (place / name).is_file()), None)
