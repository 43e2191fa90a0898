"""`ds-seq pseudo-label` with trained teachers: a real kill, real ranks, and a student."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from ds_seq.data.shards import ShardReader
from ds_seq.distill.journal import Journals
from ds_seq.distill.work_folder import WorkFolder
from tests.system import forked
from tests.system.commands import ds_seq, started
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses

NUM_PAIRS = 600


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def pairs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of some of the training text, with its vocabulary."""
    folder = tmp_path_factory.mktemp("pairs")
    for language in ("en", "de"):
        lines = lab.text(f"train.{language}").read_text(encoding="utf-8").splitlines()[:NUM_PAIRS]
        (folder / f"train.{language}").write_text("".join(f"{line}\n" for line in lines))
    (folder / "data").mkdir()
    shutil.copy(lab.folder / "data" / "vocab.model", folder / "data")
    data = f"data.dir={folder}/data"
    forked.command("prepare", lab.dense, data, raw_text(folder / "data"))[0].check()
    return folder / "data"


@pytest.fixture(scope="module")
def labels(pairs: Path, dense_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the dense teacher, made in one go by one process."""
    out = tmp_path_factory.mktemp("labels") / "data"
    (finished,) = forked.command("pseudo-label", dense_run, *options(pairs), "--out", out)
    finished.check()
    assert f"decoded {NUM_PAIRS:,} sentences" in finished.out
    return out


def raw_text(pairs: Path) -> str:
    """The setting that names the text of the shards."""
    folder = pairs.parent
    return f"data.raw.train={{source: {folder}/train.en, target: {folder}/train.de}}"


def options(pairs: Path) -> list[str | Path]:
    return [
        "--data",
        pairs,
        "--n-best",
        "2",
        "--min-bleu",
        "30",
        "--max-sentences",
        "32",
    ]


@pytest.mark.timeout(240)
def test_after_a_kill_other_ranks_resume_to_the_same_bytes(
    pairs: Path, dense_run: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    work = out / "pseudo-labels.work"
    journal = work / "journal.00000"
    arguments = ["pseudo-label", dense_run, *options(pairs), "--out", out]
    with started(ds_seq(*arguments)) as running:
        running.wait_until(lambda: journal.exists() and journal.stat().st_size > 0, 60)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait(10).code == -signal.SIGKILL
    before = Journals([journal]).sentences()
    assert 0 < len(before) < NUM_PAIRS
    with open(journal, "ab") as file:
        file.write(bytes(range(99)))  # the record on which it worked, had it come so far

    monkeypatch.setattr(WorkFolder, "remove", lambda self: None)  # so that journals can be read
    first, _ = forked.command(*arguments, ranks=2)
    first.check()
    told = re.search(r"decoded ([\d,]+) sentences .* 2 process.* ([\d,]+) were done", first.out)
    assert told is not None
    decoded, done = (int(number.replace(",", "")) for number in told.groups())
    assert (decoded, done) == (NUM_PAIRS - len(before), len(before))
    by_rank = [Journals([path]).sentences() for path in sorted(work.iterdir())[:2]]
    assert len(by_rank[1]) > 0 and set(before) <= set(by_rank[0])
    assert np.array_equal(np.sort(np.concatenate(by_rank)), np.arange(NUM_PAIRS)), "once each"
    assert content(out) == content(labels)


@pytest.mark.timeout(240)
def test_a_student_trains_on_the_labels(
    lab: Lab, pairs: Path, labels: Path, tmp_path: Path
) -> None:
    reader = ShardReader(labels, "train")
    assert NUM_PAIRS // 2 < len(reader) < 2 * NUM_PAIRS, "some of each are dropped"
    data = (f"data.dir={labels}", raw_text(pairs))
    settings = (*data, f"run_dir={tmp_path / 'run'}", "train.max_updates=4", "train.log_every=1")
    (finished,) = forked.train(lab.dense, *TINY, *NO_VALIDATION, *settings)
    finished.check()
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.timeout(240)
def test_experts_on_two_ranks_label_as_on_one(lab: Lab, moe_run: Path, tmp_path: Path) -> None:
    arguments = ["pseudo-label", moe_run, "--data", lab.folder / "data", "--split", "valid"]
    (alone,) = forked.command(*arguments, "--out", tmp_path / "alone")
    alone.check()
    spread = ["--expert-parallel", "2", "--max-sentences", "40", "--out", tmp_path / "spread"]
    for finished in forked.command(*arguments, *spread, ranks=2):
        finished.check()
    one, two = (ShardReader(tmp_path / name, "valid") for name in ("alone", "spread"))
    assert len(one) == len(two) == 100
    assert all(np.array_equal(one[n][1], two[n][1]) for n in range(100))
