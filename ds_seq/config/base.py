"""What all config sections share: strictness, external plug-ins, errors that name their field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

EXTERNAL_TAG = "external"

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
EXTERNAL_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
ExternalName = Annotated[str, StringConstraints(pattern=EXTERNAL_PATTERN)]


class Config(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        defer_build=True,
    )


class NamedConfig(Config):
    """A section whose `name` alone may stand for it: `positions: rotary`.

    Annotate the field that holds it with `SHORT_FORM`. It is written out in that form as well if it
    has nothing but a name.
    """

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> Any:
        fields = serialize(self)
        return fields["name"] if set(type(self).model_fields) == {"name"} else fields


def _section_of_name(value: Any) -> Any:
    return value if isinstance(value, Mapping | Config) else {"name": value}


SHORT_FORM = BeforeValidator(_section_of_name)
"""Marks a field whose section may be given by its name alone."""


class FieldErrors(ValueError):
    """What a cross-field check found: (dotted path below the checking section, message) pairs.

    pydantic would file the errors of such a check under the section as a whole; with the paths the
    loader can name, and find the line of, the very field that has to change.
    """

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in errors))
        self.errors = tuple(errors)


class ExternalConfig(Config):
    """A plug-in that lives outside ds_seq."""

    name: ExternalName = Field(
        description="`package.module:Name` of a callable; it is imported and called with `options`."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the external callable."
    )


def plugin_tag(default: str) -> Callable[[Any], str | None]:
    """The discriminator of a plug-in union: which member a raw section asks for.

    Args:
        default: the tag of a section that gives no `name`.
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
