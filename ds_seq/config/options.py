"""The table of all options, written from the schema (`ds-seq check --options`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from ds_seq.config.schema import (
    Section,
    defining_class,
    is_short_form,
    section_classes,
    sections,
)

_INTRODUCTION = """\
# Options of an experiment file

Written by `ds-seq check --options`. Keys are dotted as on the command line
(`ds-seq train EXP.yaml train.max_tokens=8192`). `[name]` behind a section means: where its `name`
is that; `external` stands for `package.module:Name`. What is not here (ZeRO, offloading, loss
scaling, profiling) belongs to the DeepSpeed JSON that `train.deepspeed` names.
"""


def options_table() -> str:
    """Markdown: one table a section, one row an option."""
    parts = [_INTRODUCTION]
    written: set[tuple[str, type]] = set()
    for section in sections():
        rows = list(_rows(section, written))
        if rows:
            title = section.path or "experiment"
            variant = f"[{section.variant}]" if section.variant else ""
            about = (section.config.__doc__ or "").strip().splitlines()[0]
            parts.append(
                "\n".join(
                    [
                        f"## {title}{variant}\n\n{about}\n",
                        "| option | type | default | meaning |",
                        "| --- | --- | --- | --- |",
                        *rows,
                        "",
                    ]
                )
            )
    return "\n".join(parts)


def _rows(section: Section, written: set[tuple[str, type]]) -> Iterator[str]:
    """The rows of a section, without those that another variant of it has from the same class."""
    schema = section.config.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in section.config.model_fields.items():
        if section_classes(field.annotation) and "default" not in schema["properties"][name]:
            continue  # a section of its own below; `moe`, which may be null, is an option too
        origin = (section.path_of(name), defining_class(section.config, name))
        if origin in written:
            continue
        written.add(origin)
        described = schema["properties"][name]
        default = "required" if field.is_required() else _code(_default(field, described))
        kind = _type(described, definitions)
        if is_short_form(field):
            kind, default = _names(field), _code(field.default.name)
        cells = (f"`{section.path_of(name)}`", kind, default)
        meaning = str(field.description).replace("|", "\\|")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} | {meaning} |"


def _names(field: FieldInfo) -> str:
    """The names that stand for a section."""
    classes = section_classes(field.annotation).values()
    names = [config.model_fields["name"].default for config in classes]
    return ", ".join(f"`{name}`" for name in names) + " or section"


def _default(field: FieldInfo, described: Mapping[str, Any]) -> Any:
    return (
        described["default"]
        if "default" in described
        else field.get_default(call_default_factory=True)
    )


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_type(member, definitions) for member in schema[union])
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "section"
    kind = str(schema.get("type", "any"))
    names = {"integer": "int", "number": "float", "string": "text", "boolean": "true, false"}
    names |= {"array": "list", "object": "mapping"}
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema)
    return " ".join(part for part in (names.get(kind, kind), limits) if part)
