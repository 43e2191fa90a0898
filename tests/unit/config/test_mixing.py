"""`data.corpora`, `data.mixing`, `data.modify`: what is refused, in one line with its key."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.config.changes import GROUP, HARMLESS, TRAINING, changes, settings
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import read_experiment
from ds_seq.config.world import on_world
from ds_seq.errors import UserError

DATA: dict[str, Any] = {
    "source_lang": "en",
    "target_lang": "de",
    "dir": "data",
    "corpora": {
        "web": {"source": "web.en", "target": "web.de"},
        "back": {"source": "back.en", "target": "back.de", "tag": "<bt>"},
    },
    "raw": {"valid": {"source": "v.en", "target": "v.de"}},
    "vocab": {"user_symbols": ["<bt>", "<2de>", "<2fr>"]},
}


def _read(*overrides: str) -> ExperimentConfig:
    return read_experiment({"name": "x", "data": DATA}, overrides)


def test_an_experiment_with_corpora() -> None:
    data = _read(
        "data.mixing.temperature=inf",
        "data.mixing.stages=[{shares: {web: 1}, until: {epochs: 2, of: web}}, {}]",
    ).data
    assert data.tags(data.corpora["back"]) == (["<bt>"], [])
    assert data.mixing.temperature == "inf"
    assert [stage.names(list(data.corpora)) for stage in data.mixing.stages] == [
        ["web"],
        ["web", "back"],
    ]
    assert [key for key, _ in data.entries("train")] == ["corpora.web", "corpora.back"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.corpora.web.weight=0", "data.corpora.web.weight: 0 would take nothing"),
        ("data.corpora.web.weight=-1", "data.corpora.web.weight: should be at least 0"),
        ("data.corpora.web.upsample=0", "data.corpora.web.upsample: should be at least 1"),
        ("data.corpora.web.wieght=2", "data.corpora.web.wieght: unknown key (did you mean 'weight"),
        ("data.corpora.web.tag=<synth>", "corpora.web.tag: <synth> is not in data.vocab.user_sym"),
        ("data.corpora.web.languages=[en]", "corpora.web.languages: names 1; give two"),
        ("data.corpora.web.clean.max_rati=2", "data.corpora.web.clean.max_rati: unknown key (did"),
        ("data.corpora.web.clean.max_ratio=0.5", "corpora.web.clean.max_ratio: should be at least"),
        (
            "data.corpora.web.clean.nfkc=true",
            "corpora.web.clean.nfkc: is the same for all",
        ),
        ("data.corpora.web.clean.min_words=300", "web.clean.min_words: 300 is more than max_words"),
        (
            "data.clean.pairs={'*-de': {min_words: 9}, 'en-*': {max_words: 8}}",
            "data.clean.pairs: those that apply to en-de contradict each other",
        ),
        (
            "data.source={name: fairseq, folders: bin}",
            "data.corpora: only shards keep them apart, which the source fairseq is not",
        ),
        ("data.raw.train={source: a, target: b}", "data.raw.train: the training text is named in"),
        ("data.mixing.shares={web: 1}", "data.mixing.shares: has no share of back"),
        ("data.mixing.shares={web: 1, back: 0}", "data.mixing.shares.back: 0 would take nothing"),
        ("data.mixing.shares={web: 1, bakc: 1}", "data.mixing.shares.bakc: no corpus 'bakc' in"),
        ("data.mixing.temperature=0.5", "data.mixing.temperature: should be"),
        ("data.mixing.stages=[{corpora: [wbe]}]", "no corpus 'wbe' in data.corpora (did you mea"),
        ("data.mixing.stages=[{}, {}]", "data.mixing.stages[0].until: missing: say when the next"),
        (
            "data.mixing.stages=[{until: {epochs: 1}}]",
            "stages[0].until: the last stage lasts until",
        ),
        ("data.mixing.stages=[{until: {}}, {}]", "stages[0].until: give exactly one of epochs, up"),
        (
            "data.mixing.stages=[{until: {epochs: 1, updates: 2}}, {}]",
            "stages[0].until: give exactly one of epochs, updates and metric, not epochs and up",
        ),
        (
            "data.mixing.stages=[{corpora: [web], until: {epochs: 1, of: back}}, {}]",
            "stages[0].until.of: no corpus 'back' in this stage; there are web",
        ),
        (
            "data.mixing.stages=[{until: {metric: belu}}, {}]",
            "stages[0].until.metric: belu is never measured: it is not in validation.metrics",
        ),
        (
            "data.mixing.stages=[{shares: {web: 1}, temperature: 5, until: {epochs: 1}}, {}]",
            "stages[0].temperature: shares name the corpora and their parts; remove one",
        ),
        (
            "data.mixing.stages=[{modify: {truncate: 9}}]",
            "stages[0].modify.truncate: which pairs there are cannot change from stage to stage",
        ),
        ("data.mixing.language_tags={es: <2es>}", "language_tags.es: no corpus has this target"),
        ("data.modify={upper_case: 0.7, lower_case: 0.6}", "modify.upper_case: upper_case, title"),
    ],
)
def test_mistakes_are_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        _read(override)
    (line,) = str(caught.value).splitlines()
    assert words in line


def test_there_must_be_something_to_mix() -> None:
    plain = {**DATA, "corpora": {}, "mixing": {"stages": [{}]}}
    with pytest.raises(UserError, match=r"data\.mixing: there is nothing to mix"):
        read_experiment({"name": "x", "data": plain})


def test_many_languages_need_a_tag_each() -> None:
    pairs = "data.corpora.back.languages=[en, fr]"
    with pytest.raises(UserError, match=r"tags\.de: missing: corpora\.web translates into de, oth"):
        _read(pairs)
    data = _read(pairs, "data.mixing.language_tags={de: <2de>, fr: <2fr>}").data
    assert data.tags(data.corpora["back"]) == (["<2fr>", "<bt>"], [])
    _read(pairs, "data.corpora.web.tag=<2de>")  # a tag of its own will do
    assert data.tags(data.raw.valid[0]) == (["<2de>"], [])


@pytest.mark.parametrize(("world", "accumulate"), [(1, 8), (2, 4), (3, 3), (5, 2), (8, 1)])
def test_batches_per_update_hold_on_any_number_of_ranks(world: int, accumulate: int) -> None:
    config = _read("train.batches_per_update=8")
    assert on_world(config, world).train.accumulate == accumulate
    assert config.train.group(world) == 8
    assert on_world(_read("train.accumulate=2"), world).train.accumulate == 2


@pytest.mark.parametrize(("world", "accumulate"), [(1, 9), (2, 5), (4, 3), (9, 1)])
def test_tokens_per_update_hold_on_any_number_of_ranks(world: int, accumulate: int) -> None:
    config = _read("train.global_batch_tokens=17001", "train.max_tokens=2000")
    assert on_world(config, world).train.accumulate == accumulate
    assert config.train.group(world) == 9
    changed = settings(config, {GROUP: 9}), settings(_read("train.max_tokens=2000"), {GROUP: 8})
    effects = {change.key: change.effect for change in changes(*changed)}
    assert effects == {GROUP: TRAINING, "train.global_batch_tokens": HARMLESS}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.max_tokens=auto"], "needs a number for max_tokens, which is auto"),
        (["train.batches_per_update=2"], "batches_per_update: contradicts global_batch_tokens"),
    ],
)
def test_tokens_per_update_have_one_source(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _read("train.global_batch_tokens=17000", *overrides)


def test_more_ranks_than_batches_are_refused() -> None:
    few = _read("train.global_batch_tokens=6000", "train.max_tokens=2000")
    with pytest.raises(UserError, match="6,000 are only 3 batch.es. of train.max_tokens 2,000 on"):
        on_world(few, 4)
    with pytest.raises(UserError, match="batches_per_update: 8 is less than the world size"):
        on_world(_read("train.batches_per_update=8"), 9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "back_translate: no corpus teaches the model to translate de into en"),
        (
            [
                "data.corpora.en={source: a, target: b, languages: [de, en]}",
                "data.mixing.language_tags={en: <2en>, de: <2de>}",
                "data.vocab.user_symbols=[<2en>, <2de>]",
                "data.corpora.mono.join=9",
            ],
            "corpora.mono.join: does not go with back_translate",
        ),
        (
            [
                "data.corpora.en={source: a, target: b, languages: [de, en], tag: <2en>}",
                "data.corpora.mono.tag=<2de>",
                "data.vocab.user_symbols=[<2en>, <2de>]",
            ],
            "mixing.language_tags.en: missing: corpora.mono is translated in both directions",
        ),
    ],
)
def test_text_that_is_translated_back_needs_both_directions(options: list[str], said: str) -> None:
    mono = "data.corpora={mono: {source: m, target: m, back_translate: {}}}"
    with pytest.raises(UserError) as refused:
        _read(mono, *options)
    assert said in str(refused.value)
