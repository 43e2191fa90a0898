"""Commands of fairseq's documentation, translated, train and translate."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ds_seq import cli
from tests.data.fairseq import write_recorded
from tests.system import forked
from tests.unit.compat.commands import COMMANDS, command

RECORDED = Path(__file__).parents[1] / "data" / "fairseq_checkpoints.tar.xz"
CHEAP = ("experts",)
UPDATES = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fairseq-preprocess wrote, with a split `valid`, tags in a dictionary, and a teacher."""
    folder = tmp_path_factory.mktemp("data")
    write_recorded(folder)
    for path in list((folder / "spm").glob("train.en-de.*")):
        shutil.copy(path, path.with_name(path.name.replace("train", "valid")))
    # a filter for archives of others, which Python 3.10 and 3.11.2 do not have
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(RECORDED) as archive:
        archive.extractall(folder, **safely)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow)
        for name in sorted(COMMANDS)
        if name != "global_language_wise"  # needs data of several languages
    ],
)
def test_a_command_trains(
    name: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--sentencepiece-model", str(data / "spm.model"), "--ep-world-size", "1"]
    words = command(name, data / "spm", *more)
    capsys.readouterr()
    assert cli.main(["from-fairseq", "--out", "new", "--", *words]) == 0
    experiment = "new/experiment.yaml"
    if "--teacher-checkpoint-path" in words:
        (step,) = re.findall(r"^first: +ds-seq (import .*)$", capsys.readouterr().out, re.MULTILINE)
        assert cli.main(shlex.split(step.replace("teacher.pt", str(data / "post.pt")))) == 0
    assert cli.main(["check", experiment]) == 0
    assert cli.main(["prepare", experiment]) == 0
    on_a_cpu = ["train.precision=fp32", "train.deepspeed=null", "train.accumulate=1"]
    short = [f"train.max_updates={UPDATES}", f"train.validate_every={UPDATES}",
             "validation.max_sentences=2", "generation.max_len_b=5",
             "train.sanity_validation_batches=1", "run_dir=runs/new", "train.log_every=1",
             "model.d_model=64", "model.ffn_dim=64", "model.encoder_layers=2",
             "model.decoder_layers=2", "model.num_heads=2", "train.save_every=null"]  # fmt: skip
    (done,) = forked.train(experiment, *on_a_cpu, *short)
    assert done.code == 0, done.err[-2000:]
    lines = (tmp_path / "runs" / "new" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert any(record.get("update") == UPDATES for record in records)
    if "--eval-bleu" in words:
        assert any("bleu" in record for record in records)
        text = (tmp_path / "new" / "valid.en").read_text(encoding="utf-8")
        assert text and "\u2581" not in text  # pieces are joined
