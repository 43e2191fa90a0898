"""The `data.vocab` section: the subword vocabulary, or one for each side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from ds_seq.config.base import PLUGIN, Config, FieldErrors, NonNegativeInt
from ds_seq.names import (
    FAIRSEQ_DICT,
    HUGGINGFACE,
    IDENTITY,
    MASK_PIECE,
    NORMALIZATION_RULES,
    SENTENCEPIECE,
    SENTINEL_PIECE,
    SPECIAL_PIECES,
    TOKENIZER_NAMES,
    Side,
)
from ds_seq.plugins import EXTERNAL_PATTERN, nearest

# What text never contains when the tokenizer reads it: white space inside a symbol, control and
# invisible characters, and the mark by which SentencePiece replaces spaces.
_UNMATCHED = re.compile("[\\s\x00-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\u2581]")
_SENTENCEPIECE_ONLY = (
    "model_type",
    "character_coverage",
    "byte_fallback",
    "input_sentence_size",
    "normalization",
    "mask",
    "sentinels",
)
_MADE_ELSEWHERE = (
    (FAIRSEQ_DICT, "fairseq", "dictionary, such as {dictionary: dict.en.txt, codes: bpe.codes}"),
    (HUGGINGFACE, "huggingface", "folder, such as {path: models/nllb}"),
)
"""Vocabularies that are read and not trained: name, section, what it needs."""
_Size = Annotated[int, Field(ge=8, le=10_000_000)]
_Coverage = Annotated[float, Field(gt=0.0, le=1.0)]
_ModelType = Literal["unigram", "bpe"]
_Sentinels = Annotated[int, Field(ge=0, le=10_000)]


AddedSymbol = Annotated[str, StringConstraints(pattern=r"^\S+$")]


class FairseqDictConfig(Config):
    """Files of a vocabulary that was made for fairseq."""

    dictionary: str = Field(
        min_length=1,
        description="File of fairseq's dictionary, `dict.LANG.txt`: a symbol and its count on each "
        "line.",
    )
    codes: str | None = Field(
        default=None,
        description="File of the merges of subword-nmt or fastBPE, whose pieces end with `@@`; "
        "null without `sentencepiece`: symbols are words.",
    )
    sentencepiece: str | None = Field(
        default=None,
        description="SentencePiece model whose pieces, which mark spaces by `▁`, are the symbols.",
    )
    moses: bool = Field(
        default=False,
        description="Whether text is tokenized before, and detokenized after, by the rules of "
        "Moses for the language of its side; needs the package sacremoses.",
    )
    added_symbols: list[AddedSymbol] = Field(
        default=[],
        description="Symbols after those of the file, such as the languages `__en__` of a "
        "multilingual model.",
    )
    source_opening: AddedSymbol | None = Field(
        default=None, description="Symbol in front of every source, such as `__en__`."
    )
    target_opening: AddedSymbol | None = Field(
        default=None,
        description="Symbol in front of every target, which a search forces, such as `__de__`.",
    )

    @property
    def files(self) -> dict[str, str]:
        """The files by key, without those that are not given."""
        keys = ("dictionary", "codes", "sentencepiece")
        return {key: vars(self)[key] for key in keys if vars(self)[key] is not None}

    @model_validator(mode="after")
    def _check_files(self) -> FairseqDictConfig:
        if self.codes is not None and self.sentencepiece is not None:
            message = "the symbols are pieces of one kind; give codes or sentencepiece"
            raise FieldErrors([("sentencepiece", message)])
        return self


class HuggingFaceVocabConfig(Config):
    """Folder of a tokenizer that was made for transformers."""

    path: str = Field(
        min_length=1, description="Folder with the tokenizer and the `config.json` of its model."
    )
    source_code: str | None = Field(
        default=None,
        description="The model's symbol for the language of the source, such as `deu_Latn`; null: "
        "the one that `data.source_lang` names.",
    )
    target_code: str | None = Field(
        default=None, description="The same for the language of the target."
    )
    source_prefix: str = Field(
        default="",
        description="Text in front of every source that is not empty, such as `translate English "
        "to German: ` with T5.",
    )
    side: Side | None = Field(
        default=None,
        description="Whose vocabulary is meant, if the folder has one for each side, as FSMT has; "
        "null: it has one for both.",
    )

    @property
    def files(self) -> dict[str, str]:
        """The folder, by key."""
        return {"path": self.path}


class VocabFields(Config):
    """Options of one vocabulary."""

    name: Annotated[str, PLUGIN] = Field(
        default="sentencepiece",
        description="`sentencepiece`; `fairseq_dict`, files that were made for fairseq; "
        "`huggingface`, a folder that was made for transformers; or `package.module:Name` of an "
        "external tokenizer class, which also receives `size` and `user_symbols`.",
    )
    options: dict[str, Any] = Field(
        default={}, description="Training options of an external tokenizer; others accept none."
    )
    fairseq: FairseqDictConfig | None = Field(
        default=None, description="Files of a vocabulary named `fairseq_dict`."
    )
    huggingface: HuggingFaceVocabConfig | None = Field(
        default=None, description="Folder of a vocabulary named `huggingface`."
    )

    size: _Size = Field(default=32000, description="Vocabulary size, special symbols included.")
    model_type: _ModelType = Field(default="unigram", description="SentencePiece algorithm.")
    character_coverage: _Coverage = Field(
        default=1.0,
        description="Fraction of characters covered by subwords; use 0.9995 for Chinese or "
        "Japanese.",
    )
    byte_fallback: bool = Field(
        default=False,
        description="Whether characters that no subword covers become their UTF-8 bytes, 256 more "
        "subwords, instead of `<unk>`.",
    )
    input_sentence_size: NonNegativeInt = Field(
        default=2_000_000,
        description="Number of sentences sampled to train the tokenizer; 0 means all.",
    )
    normalization: str = Field(
        default=IDENTITY,
        description="Rule by which SentencePiece rewrites text, and so also the translations: "
        "`identity` changes nothing; `nfkc`, `nmt_nfkc`, `nfkc_cf`, `nmt_nfkc_cf` (cf: lower "
        "case), or a file `NAME.tsv` of its own rules.",
    )
    user_symbols: list[str] = Field(
        default=[],
        description="Strings that are always a single subword, such as `<2de>`.",
    )
    mask: bool = Field(
        default=False,
        description=f"Whether there is a symbol `{MASK_PIECE}`, which no text contains, for "
        "denoising and masked language models.",
    )
    sentinels: _Sentinels = Field(
        default=0,
        description=f"Number of symbols `{SENTINEL_PIECE.format(0)}`, "
        f"`{SENTINEL_PIECE.format(1)}` and so on, which no text contains, for the span corruption "
        "of T5; it has 100.",
    )

    @property
    def control_symbols(self) -> list[str]:
        """Symbols that no text contains, besides those of all vocabularies."""
        masks = [MASK_PIECE] if self.mask else []
        return masks + [SENTINEL_PIECE.format(number) for number in range(self.sentinels)]

    @property
    def made_elsewhere(self) -> tuple[str, FairseqDictConfig | HuggingFaceVocabConfig] | None:
        """Key and section of the files of a vocabulary that is read and not trained, if it is."""
        for name, key, _ in _MADE_ELSEWHERE:
            if self.name == name:
                return key, vars(self)[key]
        return None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in TOKENIZER_NAMES and not re.fullmatch(EXTERNAL_PATTERN, name):
            raise ValueError(
                f"no tokenizer {name!r}{nearest(name, TOKENIZER_NAMES)}; there are "
                f"{', '.join(TOKENIZER_NAMES)}, or `package.module:Name`"
            )
        return name

    @field_validator("normalization")
    @classmethod
    def _check_normalization(cls, rule: str) -> str:
        if rule not in NORMALIZATION_RULES and not rule.endswith(".tsv"):
            raise ValueError(
                f"no rule {rule!r}{nearest(rule, NORMALIZATION_RULES)}; there are "
                f"{', '.join(NORMALIZATION_RULES)}, or a file NAME.tsv"
            )
        return rule

    @field_validator("user_symbols")
    @classmethod
    def _check_user_symbols(cls, symbols: list[str]) -> list[str]:
        known: set[str] = set()
        for symbol in symbols:
            if not symbol:
                raise ValueError("a symbol is empty; remove it")
            if symbol in SPECIAL_PIECES:
                raise ValueError(f"{symbol} is always in the vocabulary; remove it")
            if symbol == MASK_PIECE:
                raise ValueError(f"{symbol} would be read from text; remove it, and set mask: true")
            if symbol in known:
                raise ValueError(f"{symbol} is listed twice; remove one of them")
            known.add(symbol)
            if _UNMATCHED.search(symbol):
                raise ValueError(
                    f"{symbol!r} contains white space or an invisible character, which no line of "
                    "text can match; use visible characters, such as <2de>"
                )
        return symbols

    @model_validator(mode="after")
    def _check_fields(self) -> VocabFields:
        if errors := self.field_errors():
            raise FieldErrors(errors)
        return self

    def field_errors(self) -> list[tuple[str, str]]:
        """Return settings that contradict each other as (field, message) pairs."""
        return [*self._size_errors(), *self._kind_errors()]

    def _size_errors(self) -> list[tuple[str, str]]:
        num_bytes = 256 if self.byte_fallback else 0
        num_special = len(SPECIAL_PIECES) + len(self.control_symbols)
        least = num_special + len(self.user_symbols) + num_bytes + 1
        if self.name != SENTENCEPIECE or self.size >= least:
            return []
        others = f" and {num_bytes} bytes" if num_bytes else ""
        return [
            (
                "size",
                f"{self.size} has no room for text: {num_special} special and "
                f"{len(self.user_symbols)} user symbols{others} need at least {least}",
            )
        ]

    def _kind_errors(self) -> list[tuple[str, str]]:
        """Return options that belong to another kind of vocabulary."""
        errors = []
        if self.name in (SENTENCEPIECE, *(name for name, *_ in _MADE_ELSEWHERE)) and self.options:
            message = "only an external tokenizer (`package.module:Name`) accepts options"
            errors.append(("options", message))
        for name, key, example in _MADE_ELSEWHERE:
            section = vars(self)[key]
            if self.name == name and section is None:
                errors.append((key, f"missing: name the {example}"))
            if self.name != name and section is not None:
                message = f"belongs to name: {name}, but name is {self.name}; set that"
                errors.append((key, message))
        if self.name == SENTENCEPIECE:
            return errors
        keys = {name: key for name, key, _ in _MADE_ELSEWHERE}
        where = f"data.vocab.{keys.get(self.name, 'options')}"
        message = f"applies to sentencepiece only; set options of {self.name} in {where}"
        defaults = VocabFields.model_fields
        foreign = [k for k in _SENTENCEPIECE_ONLY if vars(self)[k] != defaults[k].default]
        return errors + [(name, message) for name in foreign]


class VocabSideConfig(Config):
    """What one side has otherwise than `data.vocab` says; null: the same."""

    name: Annotated[str | None, PLUGIN] = Field(default=None, description="As in data.vocab.")
    options: dict[str, Any] | None = Field(default=None, description="As in data.vocab.")
    fairseq: FairseqDictConfig | None = Field(default=None, description="As in data.vocab.")
    huggingface: HuggingFaceVocabConfig | None = Field(
        default=None, description="As in data.vocab."
    )
    size: _Size | None = Field(default=None, description="As in data.vocab.")
    model_type: _ModelType | None = Field(default=None, description="As in data.vocab.")
    character_coverage: _Coverage | None = Field(default=None, description="As in data.vocab.")
    byte_fallback: bool | None = Field(default=None, description="As in data.vocab.")
    input_sentence_size: NonNegativeInt | None = Field(
        default=None, description="As in data.vocab."
    )
    normalization: str | None = Field(default=None, description="As in data.vocab.")
    user_symbols: list[str] | None = Field(default=None, description="As in data.vocab.")
    mask: bool | None = Field(default=None, description="As in data.vocab.")
    sentinels: _Sentinels | None = Field(default=None, description="As in data.vocab.")


class VocabConfig(VocabFields):
    """The vocabulary: a joint one of source and target, or one for each side."""

    joint: bool = Field(
        default=True,
        description="Whether source and target share one vocabulary; false if `source` or `target` "
        "is given. Embeddings of source and target can then not be shared.",
    )
    source: VocabSideConfig | None = Field(
        default=None, description="What the vocabulary of the source has of its own."
    )
    target: VocabSideConfig | None = Field(
        default=None, description="What the vocabulary of the target has of its own."
    )

    @model_validator(mode="before")
    @classmethod
    def _sides_are_separate(cls, section: Any) -> Any:
        if isinstance(section, Mapping) and "joint" not in section:
            if any(section.get(side) is not None for side in ("source", "target")):
                return {**section, "joint": False}
        return section

    def field_errors(self) -> list[tuple[str, str]]:
        """Return settings that contradict each other as (field, message) pairs."""
        if self.joint:
            given = [side for side in ("source", "target") if vars(self)[side] is not None]
            if given:
                message = f"true, but {' and '.join(given)} describes a vocabulary of its own; "
                return [("joint", f"{message}remove the section, or set false")]
            return super().field_errors()
        errors = []
        for side in ("source", "target"):
            try:
                self._merged(side)
            except ValidationError as error:
                errors += [(f"{side}.{path}", text) for path, text in _messages(error)]
        return errors

    def _merged(self, side: str) -> VocabFields:
        common = {key: vars(self)[key] for key in VocabFields.model_fields}
        own = vars(self)[side]
        given = {} if own is None else {k: v for k, v in vars(own).items() if v is not None}
        return VocabFields(**{**common, **given})

    @property
    def source_side(self) -> VocabFields:
        """The vocabulary of the source; of both sides if it is joint."""
        return self if self.joint else self._merged("source")

    @property
    def target_side(self) -> VocabFields:
        """The vocabulary of the target; of both sides if it is joint."""
        return self if self.joint else self._merged("target")

    @property
    def parts(self) -> dict[str, VocabFields]:
        """The vocabularies by their key below `data.vocab`: `""`, or `source` and `target`."""
        if self.joint:
            return {"": self}
        return {"source": self.source_side, "target": self.target_side}


def _messages(error: ValidationError) -> list[tuple[str, str]]:
    """Return the errors of a merged section as (field, message) pairs."""
    found: list[tuple[str, str]] = []
    for details in error.errors(include_url=False):
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, FieldErrors):
            found += cause.errors
        else:
            place = ".".join(map(str, details["loc"]))
            found.append((place, str(details["msg"]).removeprefix("Value error, ")))
    return found
