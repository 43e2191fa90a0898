"""A tokenizer from outside the package: prepare, train, resume, translate, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ds_seq.plugins import trusting
from ds_seq.runs.open import open_run
from ds_seq.text.vocab_file import read_vocab_file
from tests.data.characters import CharacterTokenizer
from tests.system.commands import Finished
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab

NAME = "tests.data.characters:CharacterTokenizer"
TRUST = ("--trust", NAME)
TOKENIZER = (
    f"data.vocab={{name: {NAME}, size: 200, model_type: unigram, "
    "user_symbols: [<2de>], options: {upper: true}}"
)
NO_SCORES = ("train.valid_bleu=false", "train.best_metric=loss")
LONG = ("data.max_source_length=128", "data.max_target_length=128", "model.max_positions=128")


@pytest.fixture(scope="module")
def settings(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of an experiment with characters, whose shards are there."""
    folder = tmp_path_factory.mktemp("characters")
    settings = (TOKENIZER, *LONG, *NO_SCORES, f"data.dir={folder}/data", f"run_dir={folder}/run")
    command("prepare", lab.dense, *settings)[0].check()
    return settings


@pytest.fixture(scope="module")
def run(lab: Lab, settings: tuple[str, ...]) -> Path:
    """A run of two updates."""
    train(lab.dense, *settings, *TINY, *NO_VALIDATION, "train.max_updates=2")[0].check()
    return Path(settings[-1].removeprefix("run_dir="))


def translated(source: Path, text: Path) -> Finished:
    options = ("--max-len-a", 0, "--max-len-b", 30, "--format", "jsonl", "--align")
    return generate(source, "--input", text, *map(str, options), *TRUST)[0].check()


def test_a_run_and_its_exports_translate_alike(lab: Lab, run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("the man sees\n<2de> a child \u2028 reads\n", encoding="utf-8")
    found = translated(run, text).out
    first, second = map(json.loads, found.splitlines())
    assert second["source"] == "<2de> a child reads"
    tokens = len(first["hypotheses"][0]["token_scores"]) - 1
    assert tokens - 2 <= len(first["hypotheses"][0]["text"]) <= tokens * len("[unk]")
    for out in (tmp_path / "model.safetensors", tmp_path / "folder"):
        command("export", run, "--out", out, *TRUST)[0].check()
        with trusting([NAME]):
            tokenizers = open_run(out, "best").tokenizers
            assert isinstance(tokenizers.target, CharacterTokenizer)
            assert tokenizers.fingerprint == open_run(run, "best").tokenizers.fingerprint
        assert translated(out, text).out == found


def test_training_resumes_with_it(lab: Lab, run: Path, settings: tuple[str, ...]) -> None:
    more = (*settings, *TINY, *NO_VALIDATION, "train.max_updates=3", "--resume")
    assert "resuming at update 2 of 3" in train(lab.dense, *more)[0].check().err


def test_what_is_up_to_date_is_not_made_again(
    lab: Lab, settings: tuple[str, ...], tmp_path: Path
) -> None:
    again = command("prepare", lab.dense, *settings)[0].check().out
    assert again.count("vocab.model is up to date") == 1 and again.count("shards are up to") == 3
    shutil.copytree(settings[-2].removeprefix("data.dir="), tmp_path / "data")
    other = TOKENIZER.replace("upper: true", "upper: false")
    made = command("prepare", lab.dense, *settings, other, f"data.dir={tmp_path}/data")[0].check()
    assert "training 200 tests.data.characters:CharacterTokenizer subwords" in made.out


def test_a_vocabulary_of_another_kind_is_refused(
    lab: Lab, settings: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "vocab.model").write_bytes(read_vocab_file(lab.folder / "data" / "vocab.model"))
    refused = command("prepare", lab.dense, *settings, f"data.dir={tmp_path}")[0]
    assert refused.code == 2 and "vocab.model: is no list of characters" in refused.err
