"""Data prepared by the ranks of `mpirun`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.system.commands import REPOSITORY, ds_seq, run

TIMEOUT = 60.0
BINARIZE = REPOSITORY / "prepare_data" / "binarize.py"
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"]


EXPERIMENT = """\
name: toy
data:
  {{source_lang: en, target_lang: de, dir: {folder}/data, workers: 1,
    raw: {{train: {{source: {text}/train.en, target: {text}/train.de}}}}, vocab: {{size: 120}}}}
train: {{validate_every: null, save_every: 100}}
"""


@pytest.mark.mpirun
def test_ranks_prepare_the_bytes_of_one_process(tmp_path: Path) -> None:
    write_toy(tmp_path, 300, 2)
    for name, launcher in (("one", []), ("three", MPIRUN)):
        folder = tmp_path / name
        folder.mkdir()
        experiment = folder / "toy.yaml"
        experiment.write_text(EXPERIMENT.format(folder=folder, text=tmp_path))
        done = run([*launcher, *ds_seq("prepare", experiment)], TIMEOUT)
        done.check()
        assert done.out.count("train: 300 pairs in 1 shard(s)") == 1, "only rank 0 reports"
    one, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "data").rglob("train.*")}
        for name in ("one", "three")
    )
    assert len(one) > 6 and one == three


@pytest.mark.mpirun
def test_an_error_of_a_rank_is_one_line(tmp_path: Path) -> None:
    text = [tmp_path / "a", tmp_path / "b"]
    text[0].write_text("one\n" * 300)
    text[1].write_bytes(b"eins\n" * 299 + b"\xff\n")
    vocab = tmp_path / "vocab.model"
    train_vocab(text[:1], vocab, 9)
    options = ["--vocab", vocab, "--split", "train", "--languages", "en", "de"]
    command = [*MPIRUN, sys.executable, BINARIZE, *text, *options, "--out", tmp_path / "out"]
    done = run(command, TIMEOUT)
    assert done.code == 2 and done.err.count("ds-seq: error: ") == 1
    assert "b: line 300: invalid UTF-8" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
