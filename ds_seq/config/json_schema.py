"""The JSON schema of an experiment file, for editors (`ds-seq check --json-schema`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import EXTENDS
from ds_seq.config.schema import NO_TAG, is_short_form, section_classes, sections
from ds_seq.config.text_files import FOLDER_FORM

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return a JSON schema of the files that `ds-seq check` accepts, short forms included.

    The keys that a parent file may provide (`extends`) are not required.
    """
    schema = ExperimentConfig.model_json_schema()
    definitions = schema["$defs"]
    for mapping in _mappings(schema):
        if "oneOf" in mapping:  # the kinds of a section; without a name it is of the default kind
            mapping["anyOf"] = mapping.pop("oneOf")
            mapping.pop("discriminator", None)
    for section in sections():
        name = section.config.__name__
        properties = definitions.get(name, schema)["properties"]
        for key, field in section.config.model_fields.items():
            classes = section_classes(field.annotation)
            if is_short_form(field):
                names = [each.model_fields["name"].default for each in classes.values()]
                _allow(properties, key, {"enum": names})
            elif properties[key].get("type") == "array" and NO_TAG in classes:
                _allow(properties, key, properties[key]["items"])  # one instead of a list
            elif FOLDER_FORM in field.metadata:
                _allow(properties, key, {"type": "string"})
    schema["properties"][EXTENDS] = {
        "type": "string",
        "description": "Experiment file whose settings this one changes.",
    }
    for definition in (schema, definitions["DataConfig"]):
        del definition["required"]
    return {"$schema": _DRAFT, **schema, "title": "ds_seq experiment"}


def _allow(properties: dict[str, Any], key: str, alternative: dict[str, Any]) -> None:
    """Let a property have another form, too, unless this was done for another variant before."""
    given = properties[key]
    if alternative in given.get("anyOf", ()):
        return
    about = {name: given[name] for name in ("description", "default") if name in given}
    properties[key] = {"anyOf": [given, alternative], **about}


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in list(node.values()):
            yield from _mappings(child)
    elif isinstance(node, list):
        for child in node:
            yield from _mappings(child)
