"""Inspect the schema: which keys exist where. Used by hints, option tables and plug-in checks."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Tag
from pydantic.fields import FieldInfo

from ds_seq.config.base import EXTERNAL_TAG, SHORT_FORM, Config
from ds_seq.config.experiment import ExperimentConfig

NO_TAG = ""
ANY_NAME = "NAME"
"""Stands in paths for the keys of a mapping of sections, such as `data.corpora`."""


@dataclass(frozen=True)
class Section:
    """A config class at one place in the experiment file.

    Attributes:
        path: dotted path of the section; empty for the file itself.
        variant: `name` of the plug-in if the section is one, else empty.
        config: config class of the section.
    """

    path: str
    variant: str
    config: type[Config]

    def path_of(self, field: str) -> str:
        """Return the dotted path of one of the section's fields."""
        return f"{self.path}.{field}" if self.path else field


def section_classes(annotation: Any, tag: str = NO_TAG) -> dict[str, type[Config]]:
    """Map union tags to the config classes of an annotation (`NO_TAG` for a plain section)."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        return section_classes(inner, tags[0] if tags else tag)
    if get_origin(annotation) is dict:
        return section_classes(get_args(annotation)[1], tag)
    if get_origin(annotation) in (Union, types.UnionType, list):
        classes: dict[str, type[Config]] = {}
        for member in get_args(annotation):
            classes.update(section_classes(member, tag))
        return classes
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return {tag: annotation}
    return {}


def sections(config: type[Config] = ExperimentConfig, path: str = "") -> Iterator[Section]:
    """Yield `config` and all sections below it, each once, in the order of the schema."""
    # variants of one section may share subsections
    yield from dict.fromkeys(_walk(Section(path, NO_TAG, config)))


def _walk(section: Section) -> Iterator[Section]:
    yield section
    for name, field in section.config.model_fields.items():
        by_class: dict[type[Config], list[str]] = {}
        for tag, config in section_classes(field.annotation).items():
            by_class.setdefault(config, []).append(tag)
        path = section.path_of(name)
        if get_origin(field.annotation) is dict:
            path = f"{path}.{ANY_NAME}"
        for config, tags in by_class.items():
            yield from _walk(Section(path, ",".join(tags), config))


def defining_class(config: type[Config], field: str) -> type:
    """Return the class that declares `field`: `config` itself or one of its bases."""
    return next(base for base in config.__mro__ if field in vars(base).get("__annotations__", {}))


@cache
def paths_of_key(key: str) -> tuple[str, ...]:
    """Return the dotted paths of all fields named `key`, each once."""
    paths = (section.path_of(key) for section in sections() if key in section.config.model_fields)
    return tuple(dict.fromkeys(paths))


def plugin_names() -> Mapping[str, frozenset[str]]:
    """Return the built-in names of each plug-in point; the tables in code must agree with them."""
    points = {}
    for point in ("model", "task", "criterion", "optimizer", "scheduler"):
        tags = section_classes(ExperimentConfig.model_fields[point].annotation)
        points[point] = frozenset(tags) - {EXTERNAL_TAG}
    return points


def has_short_form(path: tuple[str | int, ...]) -> bool:
    """Return whether the section at `path` may be given by its name alone."""
    return _dotted(path) in _short_forms()


@cache
def _short_forms() -> frozenset[str]:
    return frozenset(
        section.path_of(name)
        for section in sections()
        for name, field in section.config.model_fields.items()
        if is_short_form(field)
    )


def is_short_form(field: FieldInfo) -> bool:
    """Return whether the section in `field` may be given by its name alone."""
    return any(item is SHORT_FORM for item in field.metadata)


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
