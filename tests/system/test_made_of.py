"""A run is made of what its config says: its data, its resumes, its ranks."""

from __future__ import annotations

import json
from pathlib import Path

from ds_seq import cli, distributed
from tests.distributed.harness import run_distributed
from tests.system.commands import Finished
from tests.system.forked import _captured, command, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, records

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1")


def test_training_refuses_shards_of_another_experiment(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other.de"
    other.write_text(lab.text("valid.de").read_text().replace(" ", "  ", 1))
    pair = f"{{source: {lab.text('valid.en')}, target: {other}}}"
    backwards = ("data.source_lang=de", "data.target_lang=en")
    vocab = ("data.vocab.size=260", "data.vocab.model_type=unigram")
    refused = {
        backwards: ("data.source_lang=en", "data.target_lang=de"),
        vocab: ("data.vocab.size=250", "data.vocab.model_type=bpe"),
        ("data.clean.max_words=9",): ("data.clean.max_words=250",),
        ("train.validate_every=1", f"data.raw.valid={pair}"): (f"{other} is not the text",),
    }
    for changed, named in refused.items():
        (end,) = train(lab.dense, *SETTINGS, *changed, f"run_dir={tmp_path / 'run'}")
        assert end.code == 2 and all(words in end.err for words in named), end.err
        assert "Traceback" not in end.err
        assert len(end.err.splitlines()) == len(named)
    assert not (tmp_path / "run").exists()


def test_a_resume_says_what_has_changed_and_keeps_every_version(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (lab.dense, *SETTINGS, f"run_dir={run}")
    train(*arguments, "train.max_updates=2")[0].check()
    config = (run / "config.yaml").read_text()
    nonsense = ("train.max_updates=3", "model.num_heads=4", "train.seed=9", "--resume")
    (end,) = train(*arguments, *nonsense)
    assert end.code == 2
    assert "model.num_heads: 2 -> 4: is another model" in end.err
    assert "train.seed: 1 -> 9: is another order of the data" in end.err
    assert (run / "config.yaml").read_text() == config
    assert len(records(run)) == 2

    more = ("train.max_updates=3", "optimizer.lr=0.001", "train.seed=9", "--resume")
    (end,) = train(*arguments, *more, "--allow-change", "train.seed")
    assert "since update 2: optimizer.lr: 0.005 -> 0.001 (changes the training)" in end.check().err
    versions = json.loads((run / "history.json").read_text())["versions"]
    assert [version["update"] for version in versions] == [0, 2]
    assert [version["config"]["train"]["seed"] for version in versions] == [1, 9]
    (end,) = train(*arguments, *more, "train.max_updates=4")
    assert "since update 2: optimizer.lr" in end.check().err


def _train_by_rank(argv: list[str]) -> Finished:
    return _captured(cli.main, [*argv, f"train.seed={1 + distributed.rank()}"])


def test_ranks_with_different_experiments_are_noticed(lab: Lab, tmp_path: Path) -> None:
    argv = ["train", *map(str, (lab.dense, *SETTINGS, f"run_dir={tmp_path / 'run'}"))]
    ends = run_distributed(_train_by_rank, 2, argv)
    assert [end.code for end in ends] == [2, 2]
    assert "ranks 0 and 1 have different experiments: train.seed 1 and 2" in ends[0].err
    assert not (tmp_path / "run").exists()


def test_readers_of_shards_refuse_another_direction(lab: Lab, tmp_path: Path) -> None:
    backwards = ("data.source_lang=de", "data.target_lang=en", f"data.dir={tmp_path / 'data'}")
    sides = (
        f"data.raw.{split}={{source: {lab.text(f'{split}.de')}, target: {lab.text(f'{split}.en')}}}"
        for split in ("train", "valid", "test")
    )
    (tmp_path / "data").mkdir()
    vocab = lab.folder / "data" / "vocab.model"
    (tmp_path / "data" / "vocab.model").write_bytes(vocab.read_bytes())
    command("prepare", lab.dense, *backwards, *sides)[0].check()
    run = tmp_path / "run"
    moe = ("train.expert_parallel=1", "train.max_updates=1", f"run_dir={run}")
    train(lab.moe, *SETTINGS, *moe)[0].check()
    data = ("--data", tmp_path / "data")
    out = ("--out", tmp_path / "out")
    for arguments in (
        ("moe-stats", run, *data),
        ("pseudo-label", run, *data, *out),
        ("teacher-cache", run, *data, *out, "--top-k", "2"),
        ("make-student", run, *out, "--encoder-layers", "1", "--dense", *data),
    ):
        (end,) = command(*arguments)
        assert end.code == 2, (arguments, end)
        assert "shards are de -> en, but" in end.err and "translates en -> de" in end.err
    teacher = f"criterion={{name: distillation, teacher: {run}}}"
    student = ("data.vocab.size=250", teacher, f"run_dir={tmp_path / 'student'}")
    swapped = (*backwards, "data.raw.train=[]", "data.raw.valid=[]", "data.raw.test=[]")
    (end,) = train(lab.dense, *SETTINGS, *student, *swapped)
    assert end.code == 2 and "but the student is to learn de -> en" in end.err
