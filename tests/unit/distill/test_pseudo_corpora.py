"""Pseudo-labels of several corpora: their names, a student's mix of them, the teacher's tags."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ds_seq.cli import main
from ds_seq.commands import generate
from ds_seq.config.load import load_experiment
from ds_seq.data.corpora import CorporaDataset
from ds_seq.data.manifest import Manifest
from ds_seq.data.shards import ShardReader
from ds_seq.distill.assembly import Sources, assemble
from ds_seq.distill.filters import Filters
from ds_seq.distill.journal import Journals, JournalWriter
from ds_seq.errors import UserError, run_command
from ds_seq.models import build_model
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.tasks import build_task
from ds_seq.tasks.mix import build_mix
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.training.inputs import train_sampler
from tests.data.toy import write_toy
from tests.faults import contents, kills
from tests.unit.runs.made import write_run

SIZES = {"web": 40, "other": 25}
TAGS = {"de": "<2de>", "fr": "<2fr>"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of two target languages, and a teacher of both that has learned nothing."""
    lab = tmp_path_factory.mktemp("corpora")
    corpora: dict[str, dict[str, Any]] = {}
    for seed, (name, size) in enumerate(SIZES.items(), 1):
        write_toy(lab / name, size, 5, seed)
        sides = {"source": f"{lab}/{name}/train.en", "target": f"{lab}/{name}/train.de"}
        corpora[name] = {**sides, "languages": ["en", "fr" if name == "other" else "de"]}
    content = {
        "name": "teacher",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(lab / "data"),
            "corpora": corpora,
            "mixing": {"language_tags": TAGS},
            "vocab": {"size": 120, "user_symbols": list(TAGS.values())},
            "max_source_length": 60,
            "max_target_length": 60,
        },
        "model": {
            "d_model": 16,
            "ffn_dim": 24,
            "num_heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "max_positions": 60,
        },
        "train": {"max_tokens": 600, "validate_every": None, "save_every": 1},
    }
    (lab / "teacher.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["prepare", str(lab / "teacher.yaml")]) == 0
    config = load_experiment(lab / "teacher.yaml")
    vocab = SentencePieceTokenizer.load(lab / "data" / "vocab.model")
    model = build_model(config.model, len(vocab), 1, 0, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    write_run(lab / "teacher", config, vocab, {1: model})
    return lab


def _label(lab: Path, name: str, *options: str) -> Path:
    out = lab / name
    arguments = [f"{lab}/teacher", "--data", f"{lab}/data", "--out", str(out), "--beam", "2"]
    assert main(["pseudo-label", *arguments, *options]) == 0
    return out


@pytest.fixture(scope="module")
def mixed(lab: Path) -> Path:
    """Labels, and each original pair one and a half times."""
    return _label(lab, "mixed", "--original", "1.5")


@pytest.mark.parametrize(
    "moments", [(6, 30), pytest.param(range(0, 1000, 3), marks=pytest.mark.slow)]
)
def test_a_labeling_that_is_killed_ends_with_the_same_bytes(
    lab: Path, moments: Iterable[int]
) -> None:
    options = ("--max-len-a", "0", "--max-len-b", "5")
    expected = contents(_label(lab, "killed", *options))
    shutil.rmtree(lab / "killed")

    def work() -> None:
        _label(lab, "killed", *options)

    for operations in kills(work, moments):
        left = contents(lab / "killed")
        # killed while the journals were removed: a labeling that is complete is not begun again
        is_complete = {name: left[name] for name in left if name[0] != "."} == expected
        if not is_complete:
            assert contents(_label(lab, "killed", *options)) == expected, operations
        shutil.rmtree(lab / "killed", ignore_errors=True)


def test_labels_keep_the_name_of_their_corpus(lab: Path, mixed: Path) -> None:
    corpora = Manifest.read(mixed / "train.manifest.json").corpora
    names = ["web", "other", "web-original", "other-original"]
    assert [corpus.name for corpus in corpora] == names
    assert [corpus.languages[1] for corpus in corpora] == ["de", "fr", "de", "fr"]
    old, new = ShardReader(lab / "data", "train"), ShardReader(mixed, "train")
    source = [old[row][0].tolist() for row in range(65)]
    for corpus, rows in zip(corpora[:2], (range(40), range(40, 65)), strict=True):
        assert [new[row][0].tolist() for row in corpus.rows] == source[rows.start : rows.stop]
    for corpus, rows in zip(corpora[2:], (range(40), range(40, 65)), strict=True):
        pairs = [tuple(side.tolist() for side in new[row]) for row in corpus.rows]
        whole = [tuple(side.tolist() for side in old[row]) for row in rows]
        assert pairs[: len(whole)] == whole
        assert all(pair in whole for pair in pairs) and 0 < len(pairs) - len(whole) < len(whole)


def test_the_teacher_reads_the_tags_of_its_training(
    lab: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So labels are what `ds-seq generate --target-lang` writes."""
    vocab = SentencePieceTokenizer.load(lab / "data" / "vocab.model")
    labels = ShardReader(mixed, "train")
    found = []
    for language, rows in (("de", range(40)), ("fr", range(40, 65))):
        lines = [vocab.decode(labels[row][0].tolist()) for row in rows]
        (lab / "in").write_text("".join(f"{line}\n" for line in lines))
        files = ["--input", f"{lab}/in", "--output", f"{lab}/out", "--beam", "2"]
        run = [f"{lab}/teacher", *files, "--target-lang", language]
        assert run_command(generate.main, run) == 0
        expected = (lab / "out").read_text().splitlines()
        decoded = [vocab.decode(labels[row][1].tolist()) for row in rows]
        assert [text.split() for text in decoded] == [text.split() for text in expected]
        found.append(decoded)
    assert "no language tag" not in capsys.readouterr().err
    assert found[0][:3] != found[1][:3]


def _student(lab: Path, folder: Path, *overrides: str) -> CorporaDataset:
    config = load_experiment(lab / "teacher.yaml", [f"data.dir={folder}", *overrides])
    dataset = build_task(config.task, config.data).dataset("train")
    assert isinstance(dataset, CorporaDataset)
    sampler = train_sampler(config, dataset, 0, 1)
    mix = build_mix(config.data, 1, dataset, sampler)
    assert mix is not None
    rows = np.concatenate(mix.sampler(mix.start).epoch(1))
    assert len(rows) == mix.stage(mix.start).epoch_pairs
    return dataset


def test_a_student_learns_from_a_mix_of_labels_and_original_pairs(lab: Path, mixed: Path) -> None:
    def corpus(name: str, code: str) -> str:
        sides = f"source: {lab}/{name}/train.en, target: {lab}/{name}/train.de"
        return f"{{{sides}, languages: [en, {code}], weight: 0.5}}"

    added = [
        f"data.corpora.{name}-original={corpus(name, code)}"
        for name, code in (("web", "de"), ("other", "fr"))
    ]
    dataset = _student(lab, mixed, *added, "data.mixing.temperature=5")
    assert [part.name for part in dataset.parts] == [*SIZES, "web-original", "other-original"]
    vocab = SentencePieceTokenizer.load(lab / "data" / "vocab.model")
    assert [vocab.pieces(part.tags[0])[0] for part in dataset.parts] == [*TAGS.values()] * 2
    with pytest.raises(UserError) as caught:
        _student(lab, mixed)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("data.corpora: has web, other, but the train shards in ")
    assert line.endswith("have web, other, web-original, other-original; name these")


def test_labels_alone_need_no_other_experiment(lab: Path) -> None:
    dataset = _student(lab, _label(lab, "alone"))
    assert {part.name: len(part.rows) for part in dataset.parts} == SIZES


def test_a_corpus_without_labels_is_refused(lab: Path, tmp_path: Path) -> None:
    reader = ShardReader(lab / "data", "train")
    vocab = SentencePieceTokenizer.load(lab / "data" / "vocab.model")
    with JournalWriter(tmp_path / "journal", vocab.symbols.eos) as writer:
        for row in range(SIZES["web"]):
            writer.append(np.array([row]), [[Hypothesis(vocab.encode("a"), -1.0, [])]])
    sources = Sources(reader, Journals([tmp_path / "journal"]), Tokenizers.shared(vocab))
    with pytest.raises(UserError, match=r"^corpus other: no hypothesis is left, .* are kept$"):
        assemble(sources, Filters(), 1.0, tmp_path / "new", "train", 9)
    assert not list((tmp_path / "new").glob("train*"))
