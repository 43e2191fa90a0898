"""Weights on their way: into one file, into another run, and out of a damaged checkpoint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.commands import Finished
from tests.system.forked import command, generate, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, forget_vocab, records, snapshot

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1", "model.dropout=0")
# an upcycled model is the dense one if no token is dropped and weights sum to 1
EXACT = ("model.moe.capacity_factor=null", "model.moe.normalize_weights=after_dropping")


@pytest.fixture(scope="module")
def dense_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run of a few updates; read-only."""
    folder = tmp_path_factory.mktemp("dense")
    more = ("train.max_updates=6", "optimizer.lr=0.02", "scheduler.warmup_updates=1")
    train(lab.dense, *SETTINGS, *more, f"run_dir={folder}")[0].check()
    return folder


@pytest.fixture(scope="module")
def moe_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates with experts on two ranks; read-only."""
    folder = tmp_path_factory.mktemp("moe")
    train(lab.moe, *SETTINGS, "train.max_updates=2", f"run_dir={folder}", ranks=2)[0].check()
    return folder


def _first_loss(folder: Path) -> float:
    """Cross-entropy of the first update, which is that of the weights it starts with."""
    value: float = records(folder)[0]["ce"]
    return value


def _refused(finished: Finished, *expected: str) -> None:
    found = [line for line in finished.err.splitlines() if line.startswith("ds-seq: error: ")]
    assert finished.code == 2 and len(found) == 1, finished
    assert "Traceback" not in finished.err
    for part in expected:
        assert part in found[0]


def test_a_dense_run_continues_with_experts(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    start = (f"train.init_from={dense_run}", "train.max_updates=1", "train.max_tokens=2000")
    dense, sparse, fresh = (tmp_path / name for name in ("dense", "sparse", "fresh"))
    finished = train(lab.dense, *SETTINGS, *start, "train.accumulate=2", f"run_dir={dense}")[0]
    assert f"starting with the weights of {dense_run}" in finished.check().err
    train(lab.moe, *SETTINGS, *EXACT, *start, f"run_dir={sparse}", ranks=2)[0].check()
    train(lab.moe, *SETTINGS, *EXACT, *start[1:], f"run_dir={fresh}", ranks=2)[0].check()
    assert _first_loss(sparse) == pytest.approx(_first_loss(dense), rel=1e-4)
    assert _first_loss(fresh) > _first_loss(dense) + 0.1

    # the run's own checkpoint takes precedence
    gone = ("train.init_from=nowhere", "train.max_updates=2", *start[2:])
    resumed = (*gone, f"run_dir={sparse}", "--resume")
    again = train(lab.moe, *SETTINGS, *EXACT, *resumed, ranks=2)[0].check()
    assert "resuming at update 1" in again.err and "starting with" not in again.err


def test_a_start_that_is_not_possible(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(dense_run, tmp_path / "other"))
    command("prepare", lab.dense, f"data.dir={tmp_path}/data", "data.vocab.size=200")[0].check()
    shutil.copyfile(tmp_path / "data" / "vocab.model", other / "vocab.model")
    forget_vocab(other)
    kept = Path(shutil.copytree(dense_run, tmp_path / "kept"))
    before = snapshot(kept)
    for more, expected in (
        (("train.init_from=nowhere",), ("nowhere", "no such run folder")),
        ((f"train.init_from={other}",), ("train.init_from", "vocabulary")),
        (
            (f"train.init_from={dense_run}", "model.ffn_dim=40"),
            ("feed_forward.up.weight", "(32, 16)", "(40, 16)"),
        ),
    ):
        settings = (*SETTINGS, *more, f"run_dir={kept}", "--overwrite")
        first, second = train(lab.moe, *settings, ranks=2)
        _refused(first, *expected)
        assert second.code == 2 and "ds-seq: error" not in second.err
        assert snapshot(kept) == before


def test_one_file_translates_like_the_run(lab: Lab, moe_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "alone" / "small.safetensors"
    exported = command("export", moe_run, "--out", file)[0].check()
    assert exported.out.startswith(f"{file}: ")
    texts = []
    for source, ranks in ((moe_run, 1), (file, 1), (file, 2)):
        out = tmp_path / "out"
        spread = ("--expert-parallel", str(ranks))
        arguments = ("--input", lab.text("test.en"), "--output", out, *spread)
        generate(source, *arguments, ranks=ranks)[0].check()
        texts.append(out.read_text())
    assert texts[0].strip() and texts == texts[:1] * 3
    before = snapshot(file.parent)
    _refused(command("export", moe_run, "--out", file)[0], str(file), "exists already")
    assert snapshot(file.parent) == before


def test_pruning_gives_a_smaller_model_and_two_scores(
    lab: Lab, moe_run: Path, tmp_path: Path
) -> None:
    file, valid = tmp_path / "small.safetensors", lab.text("valid.en")
    arguments = ("prune-experts", moe_run, "--calibration", valid, "--out", file)
    finished = command(*arguments, "--keep", "1,3")[0].check()
    assert len(re.findall(r"^(?:en|de)coder\S+  keeps .+ drops ", finished.out, re.MULTILINE)) == 2
    scores = re.findall(r"^(?:before|after) .*BLEU\S+ = ([\d.]+)", finished.out, re.MULTILINE)
    generated = generate(file)[0].check()
    assert len(scores) == 2
    assert re.findall(r"^BLEU\S+ = ([\d.]+)", generated.out + generated.err, re.MULTILINE) == [
        scores[1]
    ]
    before = snapshot(tmp_path)
    for keep, expected in (("5", "only 4 experts"), ("0", "keep at least 1"), ("x", "--keep x")):
        again = (*arguments[:4], "--out", tmp_path / "other", "--keep", keep)
        _refused(command(*again)[0], expected)
    assert snapshot(tmp_path) == before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(("damage", "word"), [(Path.unlink, "missing"), (_truncate, "truncated")])
def test_a_lost_expert_file_is_reported_by_every_command(
    lab: Lab, moe_run: Path, tmp_path: Path, damage: Callable[[Path], object], word: str
) -> None:
    copy = Path(shutil.copytree(moe_run, tmp_path / "copy"))
    name = "weights.1.safetensors"  # the second rank's experts
    assert checkpoints(copy) == [2]
    damage(copy / "checkpoints" / "update_00000002" / name)
    before = snapshot(copy)
    test, out = lab.text("test.en"), tmp_path / "out"
    other = (f"train.init_from={copy}", f"run_dir={tmp_path / 'other'}")
    resume = (f"run_dir={copy}", "--resume", "train.max_updates=4")
    prune = ("prune-experts", copy, "--keep", "2", "--calibration", test, "--out", out)
    resumed = train(lab.moe, *SETTINGS, *resume, ranks=2)[0]
    _refused(resumed, name, word, "none of its checkpoints")
    for finished in (
        train(lab.moe, *SETTINGS, *other, ranks=2)[0],
        generate(copy, "--input", test, "--output", out)[0],
        command("export", copy, "--out", out)[0],
        command(*prune)[0],
    ):
        _refused(finished, name, word)
    assert snapshot(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
