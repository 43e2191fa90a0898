"""Noise in trainings of several processes: the same batches at any layout and after a resume."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import yaml

from ds_seq import distributed
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.training.engine import Engine
from tests.system.forked import command, train
from tests.system.runs import Lab, losses

pytestmark = pytest.mark.slow
SETTINGS = (
    *("data.dir=DATA", "data.vocab={size: 260, model_type: bpe, mask: true, sentinels: 4}"),
    *("optimizer.lr=0.02", "scheduler.warmup_updates=1", "validation={metrics: [], best: loss}"),
    *("train.max_tokens=1000", "train.max_updates=4", "train.save_every=2", "train.log_every=1"),
    *("train.validate_every=null", "train.tensorboard=false", "train.deepspeed=null"),
)
WIDTHS = {"d_model": 16, "ffn_dim": 32, "num_heads": 2, "dropout": 0.0, "encoder_layers": 1}
PAIR = {**WIDTHS, "decoder_layers": 1}
TASKS = {
    "mbart": ({"name": "denoising", "side": "both", "noise": "mbart"}, PAIR),
    "t5": ({"name": "denoising", "side": "source", "noise": "t5"}, PAIR),
    "masked": (
        {"name": "masked_language_modeling", "side": "both"},
        {"name": "encoder_only", **WIDTHS},
    ),
}


class Recorder:
    """Writes a digest of each batch that a process computes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._call = Engine.__call__

    def __call__(self, engine: Engine, batch: Batch) -> ModelOutput:
        """Run the engine."""
        tensors = [batch.indices, batch.labels, *batch.inputs]
        parts = [each.numpy().tobytes() for each in tensors if isinstance(each, torch.Tensor)]
        digest = hashlib.sha256(b"|".join(parts)).hexdigest()
        with (self.folder / f"rank{distributed.rank()}").open("a") as file:
            file.write(f"{digest}\n")
        return self._call(engine, batch)

    def taken(self) -> list[list[str]]:
        """Return the digests of each process so far, and forget them."""
        files = sorted(self.folder.glob("rank*"))
        found = [file.read_text().split() for file in files]
        for file in files:
            file.unlink()
        return found


@pytest.mark.parametrize("task", TASKS)
def test_processes_and_a_resume_change_no_byte_of_a_batch(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr(Engine, "__call__", lambda engine, batch: recorder(engine, batch))
    settings = [each.replace("DATA", str(tmp_path / "data")) for each in SETTINGS]
    fields = yaml.safe_load(lab.dense.read_text(encoding="utf-8"))
    fields["task"], fields["model"] = TASKS[task]
    experiment = tmp_path / "denoising.yaml"
    experiment.write_text(yaml.safe_dump(fields), encoding="utf-8")
    command("prepare", experiment, *settings)[0].check()

    def trained(name: str, *more: str, ranks: int = 1) -> list[list[str]]:
        run = f"run_dir={tmp_path / name}"
        for done in train(experiment, *settings, run, *more, ranks=ranks):
            done.check()
        return recorder.taken()

    first, second = trained("whole", ranks=2)
    assert len(first) == len(set(first + second)) // 2 == 4, "each batch is another one"
    trained("again", "train.max_updates=2", ranks=2)
    assert trained("again", "--resume", ranks=2) == [first[2:], second[2:]]
    assert losses(tmp_path / "again") == losses(tmp_path / "whole"), "to the last bit"
    (alone,) = trained("alone", "train.accumulate=2")
    for update in range(4):
        part = slice(2 * update, 2 * update + 2)
        assert set(alone[part]) == {first[update], second[update]}
    found, expected = losses(tmp_path / "alone"), losses(tmp_path / "whole")
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    assert expected[4] < expected[1] - 0.2, "or equal losses say nothing of the updates"
