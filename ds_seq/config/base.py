"""Base classes of the config sections: strictness, external plug-ins, errors that name a field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from ds_seq.plugins import EXTERNAL_PATTERN

EXTERNAL_TAG = "external"

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(gt=0.0, le=1000.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Plugin:
    """See `PLUGIN`."""


PLUGIN = _Plugin()
"""Marks a field, a name or a list of names, that may name code from outside ds_seq."""
ExternalName = Annotated[str, StringConstraints(pattern=EXTERNAL_PATTERN), PLUGIN]


_LARGEST = 2**63 - 1
# what fp32, in which models compute, tells from infinity and 0, with room for a product
_LARGEST_FLOAT, _SMALLEST_FLOAT = 1e30, 1e-30


class Config(BaseModel):
    """Base of all sections: unknown keys are errors, and values are immutable after loading.

    One rule holds for every value: nothing is converted to another kind. A number is not text in
    quotes and not `true`; a switch is only `true` or `false`, not 1, `yes` or text; a whole number
    may be written as 1e5. Numbers are finite, fit 64 bits, and are neither infinity nor 0 in fp32
    unless they are written as 0. Bounds are those of the field; a test
    requires each number to have one.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        defer_build=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_kinds(cls, value: Any, info: ValidationInfo) -> Any:
        wanted, refused, words = _wanted(cls.model_fields[str(info.field_name)].annotation)
        for item in _scalars(value):
            if type(item) in refused and item not in words:  # which pydantic would convert
                raise ValueError(f"should be {wanted}, not {shown(item)}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_senseless_numbers(cls, value: Any) -> Any:
        for item in _scalars(value):
            if isinstance(item, float):
                if not math.isfinite(item):
                    raise ValueError(f"should be a finite number, not {item}")
                if item and not _SMALLEST_FLOAT <= abs(item) <= _LARGEST_FLOAT:
                    raise ValueError(
                        f"should be 0 or, without its sign, from {_SMALLEST_FLOAT:g} to "
                        f"{_LARGEST_FLOAT:g}, not {item}"
                    )
            if isinstance(item, int) and abs(item) > _LARGEST:
                raise ValueError(f"should be at most {_LARGEST}, not {item}")
        return value


def _wanted(annotation: Any) -> tuple[str, tuple[type, ...], set[str]]:
    """Return what to write in a field of numbers or switches, and the types that are no such value.

    Words that may stand in place of a number (`inf`, `auto`) are the last value. Other fields, and
    those that also take text, refuse nothing here.
    """
    kinds = set(_leaves(annotation))
    words = {kind for kind in kinds if isinstance(kind, str)}
    kinds -= words
    or_word = "".join(f" or {word}" for word in sorted(words))
    or_null = " or null" if type(None) in kinds else ""
    kinds.discard(type(None))
    if kinds == {bool}:
        return f"true or false{or_word}{or_null}", (int, float, str), words
    if kinds and kinds <= {int, float}:
        number = "a number" if float in kinds else "a whole number"
        return f"{number}{or_word}{or_null}", (bool, str), words
    return "", (), set()


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types of which the values of an annotation are made."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        members = members[:1]
    elif origin is dict:
        members = members[1:]
    if not members:
        yield annotation
    for member in members:
        yield from _leaves(member)


def _scalars(value: Any) -> Iterator[Any]:
    """Yield the values in lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


class NamedConfig(Config):
    """A section that may be given by its `name` alone: `positions: rotary`.

    Annotate the field that holds it with `SHORT_FORM`. A section that has no field but its name is
    also serialized in the short form. The name is always serialized, even without defaults.
    """

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> Any:
        fields = {"name": vars(self)["name"], **serialize(self)}
        return fields if len(fields) > 1 else fields["name"]


def _section_of_name(value: Any) -> Any:
    return value if isinstance(value, Mapping | Config) else {"name": value}


SHORT_FORM = BeforeValidator(_section_of_name)
"""Marks a field whose section may be given by its name alone."""


def all_defaults() -> Any:
    """Return the default of a section that a file may leave out: a file's section without keys.

    It is validated, as all defaults are. An instance of the section would make pydantic build the
    schema of that section in addition to that of the experiment, and for `dict` as the factory it
    parses a signature; `ds-seq check` spends its time on little else.
    """
    return {}


def shown(value: Any) -> str:
    """Return a value as it would be written in an experiment file, shortened if it is long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value[:200] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(str(value)):,} characters)"


class FieldErrors(ValueError):
    """Errors of a cross-field check: (dotted path below the checking section, message) pairs.

    pydantic would report the errors of such a check for the section as a whole. With the paths, the
    loader can name the exact field to change and its line.
    """

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in errors))
        self.errors = tuple(errors)


class ExternalConfig(Config):
    """A plug-in from outside ds_seq."""

    name: ExternalName = Field(
        description="`package.module:Name` of a callable, which is called with `options`."
    )
    options: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the external callable."
    )


def plugin_tag(default: str) -> Callable[[Any], str | None]:
    """Return the discriminator of a plug-in union, which maps a raw section to the tag of a member.

    Args:
        default: tag of a section without a `name`.
    """

    def tag(value: Any) -> str | None:
        if isinstance(value, Config):
            value = vars(value)
        if not isinstance(value, Mapping):
            return None
        name = value.get("name", default)
        # an unknown tag, however odd its type, makes pydantic list the valid ones
        return EXTERNAL_TAG if isinstance(name, str) and ":" in name else str(name)

    return tag
