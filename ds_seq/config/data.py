"""The `data` section: raw text, cleaning, subword vocabulary and shards."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    FieldErrors,
    PositiveInt,
    all_defaults,
    plugin_tag,
)
from ds_seq.config.clean import CleanConfig
from ds_seq.config.mixing import (
    CorpusConfig,
    CorpusName,
    MixingConfig,
    corpora_errors,
)
from ds_seq.config.modifiers import ModifiersConfig
from ds_seq.config.text_files import Language, RawSection, SplitConfig, ends_of
from ds_seq.config.vocab import VocabConfig
from ds_seq.names import SPLITS, LongPairs, NumSides


class ShardsConfig(Config):
    """The shards that `ds-seq prepare` writes."""

    name: Literal["shards"] = Field(default="shards", description="Selects this source.")


def _split_folders(value: Any) -> Any:
    return value.split(":") if isinstance(value, str) else value


class FairseqConfig(Config):
    """The output of fairseq-preprocess, read where it is."""

    name: Literal["fairseq"] = Field(description="Selects this source.")
    folders: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]], BeforeValidator(_split_folders)
    ] = Field(
        min_length=1,
        description="Its folders: a list, or a text with colons between them. All together are one "
        "epoch; validation and test data are in the first.",
    )
    languages: tuple[str, str] | None = Field(
        default=None,
        description="Source and target language in the names of its files; null: those of `data`, "
        "or none for text of one side.",
    )


_OF_PAIRS = (
    *("tag", "target_tag", "join", "modify", "alignments", "languages"),
    "back_translate",
)
"""Options of a corpus that text of one side cannot have."""
_CLEAN_OF_TEXT = {"max_words": 1_000_000, "drop_identical": False, "drop_duplicates": False}
"""Defaults of `clean` for text of one side, whose lines belong together."""

SourceConfig = Annotated[
    Annotated[ShardsConfig, Tag("shards")]
    | Annotated[FairseqConfig, Tag("fairseq")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("shards")),
]


class DataConfig(Config):
    """Languages, raw files and the folder of binarized shards."""

    language: Language | None = Field(
        default=None,
        description="Language code of text of one side, for `task: language_modeling`, instead of "
        "`source_lang` and `target_lang`. Its files are given as `{text: FILE}`; `clean` then has "
        "no limits and keeps duplicates unless they are set.",
    )
    source_lang: Language = Field(description="Language code of the source side.")
    target_lang: Language = Field(description="Language code of the target side.")
    dir: str = Field(
        min_length=1,
        description="Folder of the shards and the vocabulary (`vocab.model`, or "
        "`vocab.source.model` and `vocab.target.model`).",
    )
    source: SourceConfig = Field(
        default_factory=all_defaults, description="Source of the training examples."
    )
    raw: RawSection = Field(default_factory=all_defaults, description="Raw parallel text files.")
    corpora: dict[CorpusName, CorpusConfig] = Field(
        default={},
        description="Training corpora by name, instead of `data.raw.train`; their order is that of "
        "the shards.",
    )
    mixing: MixingConfig = Field(
        default_factory=all_defaults, description="How the corpora are mixed."
    )
    modify: ModifiersConfig = Field(
        default_factory=all_defaults,
        description="Changes of training pairs on the fly, drawn anew in each epoch.",
    )
    max_source_length: int = Field(
        default=256,
        ge=2,
        description="Maximum source length in subwords, end symbol included; see `long_pairs`.",
    )
    max_target_length: int = Field(
        default=256,
        ge=2,
        description="Maximum target length in subwords, end symbol included; see `long_pairs`.",
    )
    long_pairs: LongPairs = Field(
        default="skip",
        description="What training and the validation loss do with a pair beyond these limits: "
        "`skip` it, `truncate_source`: cut its source and skip it only if its target is too long, "
        "or `truncate`: cut both sides. References that translations are compared with are never "
        "cut.",
    )
    clean: CleanConfig = Field(default_factory=all_defaults, description="Cleaning of raw text.")
    vocab: VocabConfig = Field(default_factory=all_defaults, description="Subword vocabulary.")
    language_tags: list[str] | None = Field(
        default=None,
        description="Those of `vocab.user_symbols` that name a language at the start of a source; "
        "a source with none of them is reported. Null: those that look like tags, such as "
        "`<2de>`, `__de__`, `>>deu<<` and `de_DE`.",
    )
    shard_size: PositiveInt = Field(default=1_000_000, description="Sentence pairs per shard.")
    workers: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Number of binarization processes; null uses all CPU cores."
    )

    @property
    def num_sides(self) -> NumSides:
        """2 for pairs, 1 for text of one side."""
        return 2 if self.language is None else 1

    @property
    def fairseq_languages(self) -> tuple[str, ...]:
        """Languages in the names of the files of a source `fairseq`; none in text of one side."""
        own = self.source
        assert isinstance(own, FairseqConfig)
        if self.language is not None:
            return ()
        return own.languages or (self.source_lang, self.target_lang)

    @property
    def languages(self) -> tuple[str, str]:
        """Language codes of source and target, which are the same in summarization."""
        return self.source_lang, self.target_lang

    @property
    def file_ends(self) -> tuple[str, str]:
        """What the names of files of source and target text end with."""
        return ends_of(self.languages)

    @model_validator(mode="before")
    @classmethod
    def _fill_language(cls, data: Any) -> Any:
        """Give both sides the language of text of one side, and cleaning what suits it."""
        if not isinstance(data, Mapping) or data.get("language") is None:
            return data
        language, clean = data["language"], data.get("clean", {})
        filled = {"source_lang": language, "target_lang": language, **data}
        if isinstance(clean, Mapping) and not clean.get("preset"):
            filled["clean"] = {**_CLEAN_OF_TEXT, **clean}
        return filled

    @model_validator(mode="after")
    def _check_sides(self) -> DataConfig:
        errors = []
        for split in SPLITS:
            for key, entry in self.entries(split):
                if self.language is not None and entry.text is None:
                    message = "has two sides; give text of data.language as {text: FILE}"
                    errors.append((key, message))
                elif self.language is None and entry.text is not None:
                    message = "text has one side; set data.language instead of source_lang and "
                    errors.append((key, f"{message}target_lang, or name both sides"))
        if self.language is not None:
            errors += self._errors_of_text()
            if isinstance(self.source, FairseqConfig) and self.source.languages is not None:
                message = "text of one side has none in the names of its files; use null"
                errors.append(("source.languages", message))
        if errors:
            raise FieldErrors(list(dict.fromkeys(errors)))
        return self

    def _errors_of_text(self) -> Iterator[tuple[str, str]]:
        """Yield what pairs alone can have in data of one side."""
        for key in ("source_lang", "target_lang"):
            if getattr(self, key) != self.language:
                yield key, f"language is given, which is that of all text; remove {key}"
        if not self.vocab.joint:
            yield "vocab.joint", "text of one side has one vocabulary; set it to true"
        if self.long_pairs != "skip":
            yield "long_pairs", "is about pairs; the task cuts text of one side itself"
        if self.modify != ModifiersConfig():
            yield "modify", "changes pairs, and text of one side has none; remove it"
        if self.mixing.language_tags:
            yield "mixing.language_tags", "stand before sources, and text of one side has none"
        for name, corpus in self.corpora.items():
            for key in _OF_PAIRS:
                if getattr(corpus, key):
                    yield f"corpora.{name}.{key}", "is a matter of pairs, not of text of one side"

    def entries(self, split: str) -> list[tuple[str, SplitConfig]]:
        """Return the raw texts of a split, each with its dotted key; several may have one key."""
        if split == "train" and self.corpora:
            return [(f"corpora.{name}", corpus) for name, corpus in self.corpora.items()]
        return [(f"raw.{split}", entry) for entry in self.raw.entries(split)]

    @property
    def has_plain_pairs(self) -> bool:
        """Whether all text is in the two languages, without tags, and is trained on as it is."""
        texts = [entry for split in SPLITS for _, entry in self.entries(split)]
        return not (
            self.corpora
            or self.modify != ModifiersConfig()
            or self.mixing.language_tags
            or any(text.languages or text.tag or text.target_tag for text in texts)
        )

    def _unknown_tags(self) -> Iterator[tuple[str, str]]:
        """Yield the key and a message for each tag that its vocabulary does not have."""
        vocabularies = {"tag": self.vocab.source_side, "target_tag": self.vocab.target_side}
        texts: dict[str, SplitConfig] = {f"corpora.{key}": c for key, c in self.corpora.items()}
        for split, entries in (("valid", self.raw.valid), ("test", self.raw.test)):
            texts |= {f"raw.{split}.{n}": entry for n, entry in enumerate(entries)}
        for key, text in texts.items():
            for side, tags in zip(vocabularies, self.tags(text), strict=True):
                for tag in tags:
                    if tag not in vocabularies[side].user_symbols:
                        yield f"{key}.{side}", f"{tag} is not in {self._symbols_of(side)}; add it"

    def _symbols_of(self, tag: str) -> str:
        """Return the key of the user symbols among which a kind of tag must be."""
        if self.vocab.joint:
            return "data.vocab.user_symbols"
        return f"data.vocab.{'source' if tag == 'tag' else 'target'}.user_symbols"

    def tags(self, text: SplitConfig) -> tuple[list[str], list[str]]:
        """Return the tags at the start of the source and of the target of a text."""
        language = self.mixing.language_tags.get(text.pair(self.languages)[1])
        return [*([] if language is None else [language]), *text.tag], list(text.target_tag)

    @model_validator(mode="after")
    def _check_corpora(self) -> DataConfig:
        errors = list(corpora_errors(self.corpora, self.mixing, self.languages, self.clean))
        if self.corpora and self.raw.train:
            message = "the training text is named in data.corpora, too; remove one of them"
            errors.append(("raw.train", message))
        errors += [
            (f"raw.train.{n}.{key}", "is a matter of a corpus; name this text in data.corpora")
            for n, text in enumerate(self.raw.train)
            for key in ("tag", "target_tag", "languages")
            if vars(text)[key] and (key != "languages" or text.pair(("", "")) != self.languages)
        ]
        if self.corpora and not isinstance(self.source, ShardsConfig):
            message = f"only shards keep them apart, which the source {self.source.name} is not"
            errors.append(("corpora", f"{message}; name its text in data.raw, or convert the data"))
        errors += self._unknown_tags()
        errors += [
            (f"corpora.{name}.back_translate", "needs one vocabulary: data.vocab.joint is false")
            for name, corpus in self.corpora.items()
            if corpus.back_translate is not None and not self.vocab.joint
        ]
        if errors:
            raise FieldErrors(list(dict.fromkeys(errors)))
        return self

    @model_validator(mode="after")
    def _check_symbols(self) -> DataConfig:
        where = "vocab.user_symbols" if self.vocab.joint else "vocab.source.user_symbols"
        for tag in self.language_tags or ():
            if tag not in self.vocab.source_side.user_symbols:
                raise FieldErrors([("language_tags", f"{tag!r} is not in {where}")])
        name = "NFKC" if self.clean.nfkc else self.clean.unicode_form
        if name is None:
            return self
        key = "nfkc" if self.clean.nfkc else "unicode_form"
        for side, vocab in self.vocab.parts.items():
            for symbol in vocab.user_symbols:
                if (form := unicodedata.normalize(name, symbol)) != symbol:
                    message = f"data.clean.{key} turns {symbol} into {form}; list it in that form"
                    place = f"vocab.{side}.user_symbols" if side else "vocab.user_symbols"
                    raise FieldErrors([(place, message)])
        return self
