"""Data prepared by the ranks of `mpirun`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.system.commands import REPOSITORY, run

TIMEOUT = 60.0
BINARIZE = REPOSITORY / "prepare_data" / "binarize.py"
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.mpirun
def test_ranks_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    write_toy(tmp_path, 300, 2)
    text = [tmp_path / f"train.{side}" for side in ("en", "de")]
    vocab = tmp_path / "vocab.model"
    train_vocab(text, vocab, 130)
    options = ["--vocab", vocab, "--split", "train", "--languages", "en", "de"]
    command = [sys.executable, BINARIZE, *text, *options, "--out"]
    run([*command, tmp_path / "one"], TIMEOUT).check()
    done = run([*MPIRUN, *command, tmp_path / "three"], TIMEOUT)
    done.check()
    assert done.out.count("300 pairs in 1 shard(s)") == 1, "only the first rank reports"
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    text[1].write_text("one line\n")
    done = run([*MPIRUN, *command, tmp_path / "three"], TIMEOUT)
    assert done.code == 2 and done.err.count("ds-seq: error: ") == 1
    assert "the two sides differ" in done.err and "Traceback" not in done.err
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
