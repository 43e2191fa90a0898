"""The `data.raw` section: files of raw text, in the forms in which people have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from ds_seq.config.base import Config, FieldErrors, PositiveInt
from ds_seq.names import SIDES, SPLITS, InvalidUtf8

Language = Annotated[str, StringConstraints(pattern=r"^[^\s/\\.][^\s/\\]*$")]
"""A language code; it ends the names of files, so it must not lead into another folder."""
Tags = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
LanguagePair = tuple[str, str]
Files = list[str] | str

FORMS = ("source", "text", "tsv", "jsonl", "tmx", "xml", "folder")
"""The keys that name files; `source` comes with `target`."""
_ONE_FORM: list[dict[str, Any]] = [
    {"required": [name, "target"] if name == "source" else [name]} for name in FORMS
]
"""What the JSON schema requires of an entry, as `SplitConfig` does."""
_FORMS_OF = {
    "columns": ("tsv",),
    "header": ("tsv",),
    "keys": ("jsonl", "tmx", "xml", "folder"),
}
DETAILS = (*_FORMS_OF, "invalid_utf8")
"""The keys that say how the files are read."""


def ends_of(languages: LanguagePair) -> LanguagePair:
    """Return what tells the sides of a text apart: languages, or `SIDES` if they are the same."""
    return SIDES if languages[0] == languages[1] else languages


class SplitConfig(Config):
    """Parallel text: two files, or one file or folder with both sides.

    Compressed files (`.gz`, `.bz2`, `.xz`, `.zst`) are read as they are. Several files of one form
    are given as a list: `{source: [a.en, b.en], target: [a.de, b.de]}`.
    """

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(anyOf=_ONE_FORM))

    source: Files | None = Field(
        default=None,
        description="File of source sentences, one per line, UTF-8; line n of it is translated by "
        "line n of `target`. A test set in `.sgm` or `.xml` has them in `<seg>`.",
    )
    target: Files | None = Field(
        default=None, description="File of target sentences, one per line, UTF-8; see `source`."
    )
    text: Files | None = Field(
        default=None,
        description="File of text of one side, in the language `data.language`: a sentence or a "
        "paragraph per line, UTF-8; an empty line ends a document.",
    )
    tsv: Files | None = Field(
        default=None,
        description="File with both sides in columns that are separated by tabs; see `columns`.",
    )
    columns: tuple[PositiveInt, PositiveInt] = Field(
        default=(1, 2),
        description="Columns of source and target in a `tsv`, counted from 1.",
    )
    header: bool = Field(
        default=False, description="Whether the first line of a `tsv` names its columns."
    )
    jsonl: Files | None = Field(
        default=None,
        description="File with a JSON object per line; `keys` says which text is which side.",
    )
    tmx: Files | None = Field(
        default=None, description="Translation memory; `keys` are the language codes in it."
    )
    xml: Files | None = Field(
        default=None,
        description="Test set of WMT in XML (since 2021): source and first reference of each "
        "document; `keys` are the language codes in it.",
    )
    folder: str | None = Field(
        default=None,
        description="Folder that has the split by name: `train.source` and `train.target` (or "
        "`train.en` and `train.de`; also `val`, `valid`, `dev`, `test`), or the output of mtdata, "
        "or its `mtdata.signature.txt`. `keys` are other ends of the names.",
    )
    keys: tuple[str, str] | None = Field(
        default=None,
        description="What source and target are called in a `jsonl` (`[translation.en, "
        "translation.de]` for nested objects), `tmx`, `xml` or `folder`; null means the language "
        "codes.",
    )
    invalid_utf8: InvalidUtf8 | None = Field(
        default=None,
        description="What happens to a pair that is not UTF-8: `stop` with the number of its line, "
        "`drop` it, or `replace` what is wrong by U+FFFD. Null: dropped in training text (cleaning "
        "counts it), otherwise stop.",
    )
    alignments: Files | None = Field(
        default=None,
        description="File of word alignments: on line n the links of pair n, such as `0-0 1-2`, "
        "source first, counted from 0. They are kept next to the shards.",
    )
    languages: list[Language] = Field(
        default=[],
        description="Language codes of source and target, such as `[en, fr]`; empty: "
        "`data.source_lang` and `data.target_lang`.",
    )
    tag: Tags = Field(
        default=[],
        description="User symbol, or a list of them, at the start of each source sentence, such as "
        "`<bt>` for back-translations; after the tag of the language.",
    )
    target_tag: Tags = Field(
        default=[],
        description="User symbol, or a list of them, at the start of each target sentence; "
        "translations begin with it, too.",
    )

    def pair(self, default: LanguagePair) -> LanguagePair:
        """Return the language codes of source and target, by default those of `data`."""
        source, target = self.languages or default
        return source, target

    @property
    def alignment_files(self) -> list[str]:
        """The files of alignments, one for each text; none if there are no alignments."""
        return _listed(self.alignments)

    @field_validator("target", mode="after")
    @classmethod
    def _check_target(cls, value: Any, info: ValidationInfo) -> Any:
        # not with the whole section: an unknown key (`targt`) would hide this
        if value is None and info.data.get("source") is not None:
            raise ValueError(f"missing. {cls.model_fields['target'].description}")
        return value

    @model_validator(mode="after")
    def _check_form(self) -> SplitConfig:
        given = [name for name in FORMS if getattr(self, name) is not None]
        problems: list[tuple[str, str]] = []
        if self.target is not None and self.source is None:
            about = SplitConfig.model_fields["source"].description
            problems.append(("source", f"missing. {about}"))
        elif len(given) != 1:
            names = f"{' and '.join(given)} are" if given else "none is"
            problems.append(("source", f"give one of {', '.join(FORMS)}; {names} given here"))
        form = given[0] if given else ""
        for name, forms in _FORMS_OF.items():
            if form and name in self.model_fields_set and form not in forms:
                default = type(self).model_fields[name].default
                if getattr(self, name) != default:
                    problems.append((name, f"belongs to {' or '.join(forms)}, not to {form}"))
        if form == "jsonl" and self.keys is not None and self.keys[0] == self.keys[1]:
            problems.append(("keys", f"{self.keys[0]} is both source and target"))
        if form in ("tmx", "xml") and self.invalid_utf8 in ("drop", "replace"):
            message = f"{self.invalid_utf8} is not possible in XML; use stop, or convert the file"
            problems.append(("invalid_utf8", message))
        problems += self._count_problems(given)
        if self.languages and len(self.languages) != 2:
            message = f"names {len(self.languages)}; give two: of the source, then of the target"
            problems.append(("languages", message))
        if problems:
            raise FieldErrors(problems)
        return self

    def _count_problems(self, given: list[str]) -> Iterator[tuple[str, str]]:
        """Yield where the numbers of files do not match."""
        sides = [_listed(side) for side in (self.source, self.target)]
        if self.source is not None and self.target is not None and len(sides[0]) != len(sides[1]):
            message = f"names {len(sides[1])} file(s), but source {len(sides[0])}"
            yield "target", f"{message}; give as many, in the same order"
        links = len(self.alignment_files)
        if links and self.folder is not None:
            yield "alignments", "name the files of the folder one by one with them"
        elif links and given and links != (texts := len(_listed(getattr(self, given[0])))):
            message = f"names {links} file(s) for {texts} text(s)"
            yield "alignments", f"{message}; give as many, in the same order"
        empty = [name for name in (*given, "target") if getattr(self, name) in ([], "")]
        yield from ((name, "names no file") for name in empty[:1])

    @model_serializer(mode="wrap")
    def _without_other_forms(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        declared = SplitConfig.model_fields
        return {
            name: value
            for name, value in fields.items()
            if name not in declared or getattr(self, name) != declared[name].default
        }


def _listed(value: Sequence[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict | SplitConfig) else value


Splits = Annotated[list[SplitConfig], BeforeValidator(_as_list)]


class RawConfig(Config):
    """Raw parallel text. Each split is one text, such as `{source, target}`, or a list of them."""

    folder: str | None = Field(
        default=None,
        description="Folder that has all splits that are not given, see "
        "`data.raw.train.folder`; `raw: FOLDER` is short for `raw: {folder: FOLDER}`.",
    )
    train: Splits = Field(default=[], description="Training text.")
    valid: Splits = Field(
        default=[],
        description="Validation text; its raw target side is the reference of validation BLEU.",
    )
    test: Splits = Field(default=[], description="Test text, never used in training.")

    def entries(self, split: str) -> list[SplitConfig]:
        """Return the texts of a split; those of `folder` may not be there."""
        given = {"train": self.train, "valid": self.valid, "test": self.test}.get(split, [])
        if given or self.folder is None or split not in SPLITS:
            return given
        return [SplitConfig(folder=self.folder)]


class _FolderForm:
    """See `FOLDER_FORM`."""


FOLDER_FORM = _FolderForm()
"""Marks a section that may be given by the name of a folder alone."""


def _section_of_folder(value: Any) -> Any:
    return {"folder": value} if isinstance(value, str) else value


RawSection = Annotated[RawConfig, BeforeValidator(_section_of_folder), FOLDER_FORM]
