"""The `data.corpora` and `data.mixing` sections: several training corpora in one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ds_seq.config.base import Config, FieldErrors, PositiveInt
from ds_seq.config.clean import CleanConfig, clean_of_corpus, override_errors
from ds_seq.config.modifiers import ModifiersConfig
from ds_seq.config.text_files import LanguagePair, SplitConfig
from ds_seq.plugins import nearest

CorpusName = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]
Share = Annotated[float, Field(ge=0.0, le=1e6)]
Errors = Iterator[tuple[str, str]]
"""(dotted path below the checked section, message)."""


def _check_temperature(value: float | str) -> float | str:
    if isinstance(value, float | int) and value < 1.0:
        raise ValueError(f"should be at least 1, or inf, not {value:g}")
    return value


Temperature = Annotated[
    Annotated[float, Field(le=1e9)] | Literal["inf"], AfterValidator(_check_temperature)
]


class BackTranslateConfig(Config):
    """How the model translates the targets of a corpus back, with its weights of each update."""

    width: PositiveInt = Field(
        default=1, le=1000, description="Width of the beam search; 1 is greedy search."
    )
    sampling: bool = Field(
        default=False, description="Draw translations from the model instead of searching."
    )


class CorpusConfig(SplitConfig):
    """A training corpus: its files, and how much of it is taken."""

    weight: Share = Field(
        default=1.0,
        description="Factor of the share that the corpus gets by its size; see "
        "`data.mixing.temperature`.",
    )
    upsample: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1, description="Count each pair this many times, as if it stood there as often."
    )
    join: PositiveInt | None = Field(
        default=None,
        description="Join consecutive pairs to documents of at most this many tokens per side; "
        "null joins nothing.",
    )
    clean: dict[str, Any] = Field(
        default={},
        description="Other values of some keys of `data.clean` for this corpus, such as "
        "`{max_ratio: 2.0}`; they win over those of its language pair.",
    )
    modify: ModifiersConfig | None = Field(
        default=None, description="Modifiers of this corpus; null: those of `data.modify`."
    )
    back_translate: BackTranslateConfig | None = Field(
        default=None,
        description="The corpus is text in the target language, with the same file as `source` and "
        "`target`; the model makes its sources in training by translating it back. `{}`: greedily. "
        "Null: the sources are those of the files.",
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_equal_sides(cls, data: Any) -> Any:
        """Let cleaning keep text that stands on both sides to be translated back."""
        if not isinstance(data, Mapping) or data.get("back_translate") is None:
            return data
        clean = data.get("clean") or {}
        return {**data, "clean": {"drop_identical": False, **clean}}


class UntilConfig(Config):
    """The end of a stage: exactly one of `epochs`, `updates` and `metric`."""

    epochs: PositiveInt | None = Field(default=None, description="Number of epochs.")
    of: CorpusName | None = Field(
        default=None, description="Count passes over this corpus instead of epochs of the mix."
    )
    updates: PositiveInt | None = Field(default=None, description="Number of updates.")
    metric: str | None = Field(
        default=None, description="Figure of the validation that no longer improves."
    )
    validations: PositiveInt = Field(
        default=1, description="Number of consecutive validations without a better `metric`."
    )

    @model_validator(mode="after")
    def _check_one(self) -> UntilConfig:
        given = [name for name in ("epochs", "updates", "metric") if vars(self)[name] is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"give exactly one of epochs, updates and metric, not {found}")
        if self.of is not None and self.epochs is None:
            raise FieldErrors([("of", "belongs to epochs, which is null")])
        return self


class StageConfig(Config):
    """A part of the training with a mix of its own."""

    name: str | None = Field(default=None, description="Name for messages; null: its number.")
    corpora: list[str] = Field(default=[], description="Corpora of the stage; empty means all.")
    shares: dict[str, Share] | None = Field(
        default=None,
        description="As `data.mixing.shares`, for this stage, which has these corpora only.",
    )
    temperature: Temperature | None = Field(
        default=None, description="As `data.mixing.temperature`, for this stage."
    )
    modify: ModifiersConfig | None = Field(
        default=None,
        description="Modifiers in this stage, of all its corpora, instead of `data.modify` and "
        "`data.corpora.NAME.modify`; `{}` changes nothing. Null: as elsewhere.",
    )
    until: UntilConfig | None = Field(
        default=None, description="When the next stage begins; only the last stage has none."
    )

    def names(self, known: list[str]) -> list[str]:
        """Return the corpora of the stage, in the order of `known`, which are all."""
        chosen = self.shares if self.shares is not None else self.corpora or known
        return [name for name in known if name in chosen]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | StageConfig) else value


Stages = Annotated[list[StageConfig], BeforeValidator(_as_list)]


class MixingConfig(Config):
    """How the corpora are mixed. The order is a function of (seed, position) for any world size."""

    temperature: Temperature = Field(
        default=1.0,
        description="T of the shares `weight * (upsample * pairs) ** (1 / T)`: 1 is in proportion "
        "to the sizes, `inf` gives all corpora of equal weight the same share.",
    )
    shares: dict[str, Share] | None = Field(
        default=None,
        description="Shares by corpus, independent of sizes, such as `{clean: 0.6, back: 0.4}`; "
        "they need not sum to 1. Null: by size, see `temperature`.",
    )
    epoch_pairs: PositiveInt | None = Field(
        default=None,
        description="Pairs per epoch of the mix; null: the sum of all pairs, upsampled ones as "
        "often as they count.",
    )
    stages: Stages = Field(
        default=[], description="Stages, one after the other; empty means a single one."
    )
    language_tags: dict[str, str] = Field(
        default={},
        description="User symbol at the start of each source sentence by target language, such as "
        "`{de: <2de>, fr: <2fr>}`; needed if there are several target languages.",
    )

    @property
    def stage_metrics(self) -> list[str]:
        """Metrics by which stages end."""
        ends = [stage.until.metric for stage in self.stages if stage.until is not None]
        return list(dict.fromkeys(metric for metric in ends if metric is not None))


def corpora_errors(
    corpora: Mapping[str, CorpusConfig],
    mixing: MixingConfig,
    default: LanguagePair,
    clean: CleanConfig,
) -> Errors:
    """Yield the mistakes of the two sections, with paths below `data`.

    Args:
        corpora: `data.corpora`.
        mixing: `data.mixing`.
        default: languages of corpora that name none.
        clean: `data.clean`.
    """
    if not corpora:
        if mixing.stages or mixing.shares is not None:
            yield "mixing", "there is nothing to mix: name the corpora in data.corpora"
        return
    for name, corpus in corpora.items():
        if corpus.weight == 0:
            yield f"corpora.{name}.weight", _zero("weight")
        yield from _clean_errors(name, corpus, corpus.pair(default), clean)
    yield from _share_errors(mixing.shares, list(corpora), "mixing")
    yield from _stage_errors(mixing, list(corpora))
    yield from _language_errors(corpora, mixing, default)
    yield from _back_errors(corpora, mixing, default)


def _clean_errors(
    name: str, corpus: CorpusConfig, languages: LanguagePair, clean: CleanConfig
) -> Errors:
    try:
        of_pair = clean_of_corpus(clean, languages)
    except ValidationError:  # `*-de` and `en-*` may each be right
        yield "clean.pairs", f"those that apply to {'-'.join(languages)} contradict each other"
        return
    for path, message in override_errors(of_pair, corpus.clean):
        yield f"corpora.{name}.clean.{path}", message


def _zero(what: str) -> str:
    return f"0 would take nothing from this corpus; give a {what} above 0, or remove the corpus"


def _unknown(name: str, known: list[str], where: str = "in data.corpora") -> str:
    return f"no corpus {name!r} {where}{nearest(name, known)}; there are {', '.join(known)}"


def _share_errors(
    shares: Mapping[str, float] | None, known: list[str], at: str, whole: bool = True
) -> Errors:
    if shares is None:
        return
    for name, share in shares.items():
        if name not in known:
            yield f"{at}.shares.{name}", _unknown(name, known)
        elif share == 0:
            yield f"{at}.shares.{name}", _zero("share")
    unknown = [name for name in shares if name not in known]
    if not shares:
        yield f"{at}.shares", "is empty; give a share for each corpus, or null"
    elif whole and not unknown and (missing := [name for name in known if name not in shares]):
        yield f"{at}.shares", f"has no share of {missing[0]}; give one for each corpus"


def _stage_errors(mixing: MixingConfig, known: list[str]) -> Errors:
    for number, stage in enumerate(mixing.stages):
        at, is_last = f"mixing.stages.{number}", number == len(mixing.stages) - 1
        for name in stage.corpora:
            if name not in known:
                yield f"{at}.corpora", _unknown(name, known)
        yield from _share_errors(stage.shares, known, at, whole=False)
        for key, given in (("corpora", stage.corpora), ("temperature", stage.temperature)):
            if given and stage.shares is not None:
                yield f"{at}.{key}", "shares name the corpora and their parts; remove one of them"
        if stage.modify is not None and stage.modify.truncate is not None:
            yield (
                f"{at}.modify.truncate",
                "which pairs there are cannot change from stage to stage; set it in data.modify or "
                "in data.corpora.NAME.modify",
            )
        of = None if stage.until is None else stage.until.of
        if of is not None and of not in stage.names(known):
            yield f"{at}.until.of", _unknown(of, stage.names(known), "in this stage")
        if is_last and stage.until is not None:
            yield f"{at}.until", "the last stage lasts until the end of the training; remove until"
        if not is_last and stage.until is None:
            yield f"{at}.until", "missing: say when the next stage begins, such as {epochs: 2}"


def _language_errors(
    corpora: Mapping[str, CorpusConfig], mixing: MixingConfig, default: LanguagePair
) -> Errors:
    pairs = {name: corpus.pair(default) for name, corpus in corpora.items()}
    targets = sorted({target for _, target in pairs.values()})
    for language in mixing.language_tags:
        if language not in targets:
            yield (
                f"mixing.language_tags.{language}",
                f"no corpus has this target language{nearest(language, targets)}; there are "
                f"{', '.join(targets)}",
            )
    if len(targets) == 1:
        return
    for name, (_, target) in pairs.items():
        if target not in mixing.language_tags and not corpora[name].tag:
            yield (
                f"mixing.language_tags.{target}",
                f"missing: corpora.{name} translates into {target}, others into another language, "
                f"so the model must be told; add a tag, such as {target}: <2{target}>, also to "
                "data.vocab.user_symbols",
            )


def _back_errors(
    corpora: Mapping[str, CorpusConfig], mixing: MixingConfig, default: LanguagePair
) -> Errors:
    for name, corpus in corpora.items():
        if corpus.back_translate is None:
            continue
        at, (source, target) = f"corpora.{name}.back_translate", corpus.pair(default)
        teach = [
            other
            for other in corpora.values()
            if other.back_translate is None and other.pair(default) == (target, source)
        ]
        if not teach:
            yield at, f"no corpus teaches the model to translate {target} into {source}; add one"
        for language in (source, target):
            if language not in mixing.language_tags:
                message = f"missing: corpora.{name} is translated in both directions"
                yield f"mixing.language_tags.{language}", message
        if corpus.join is not None:
            yield f"corpora.{name}.join", "does not go with back_translate; remove one of them"
