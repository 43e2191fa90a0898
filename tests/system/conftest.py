"""One generated corpus, one dense run and one Mixture-of-Experts run, which many tests look at.

They are made once per test session, also when several workers share it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.data.toy import write_toy
from tests.system.commands import REPOSITORY, Finished
from tests.system.forked import command, train
from tests.system.runs import Lab

_DENSE = """\
name: dense
run_dir: {folder}/runs/dense
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw:
    train: {{source: {folder}/text/train.en, target: {folder}/text/train.de}}
    valid: {{source: {folder}/text/valid.en, target: {folder}/text/valid.de}}
    test: {{source: {folder}/text/test.en, target: {folder}/text/test.de}}
  max_source_length: 32
  max_target_length: 32
  vocab: {{size: 250, model_type: bpe}}
model:
  {{d_model: 64, encoder_layers: 2, decoder_layers: 2, num_heads: 2, ffn_dim: 128, dropout: 0.1,
    norm_position: pre, max_positions: 64}}
optimizer: {{name: adamw, lr: 5e-3, betas: [0.9, 0.98]}}
scheduler: {{name: inverse_sqrt, warmup_updates: 60}}
train:
  {{max_tokens: 1000, clip_norm: 1.0, max_updates: 120, log_every: 20, validate_every: 60}}
generation: {{beam: 2}}
"""
_MOE = """\
extends: dense.yaml
name: moe
run_dir: {folder}/runs/moe
model: {{moe: {{num_experts: 4, top_k: 1, placement: both, every: 2}}}}
criterion: {{name: model_and_base, loss_weights: {{load_balance: 0.01, router_z: 0.001}}}}
train: {{deepspeed: {repository}/configs/ds_config/zero1.json, expert_parallel: 2, max_tokens: 500}}
"""


def _once(folder: Path, name: str, make: Callable[[], Finished]) -> Finished:
    """What ``make`` returns; of workers side by side one calls it and the others wait for that."""
    note = folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        if not note.is_file():
            note.write_text(json.dumps(make()), encoding="utf-8")
        return Finished(*json.loads(note.read_text(encoding="utf-8")))


def _prepare(folder: Path) -> Finished:
    write_toy(folder / "text", train=2000, held_out=100)
    for name, text in {"dense": _DENSE, "moe": _MOE}.items():
        content = text.format(folder=folder, repository=REPOSITORY)
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return command("prepare", folder / "dense.yaml")[0].check()


def _train(experiment: Path, ranks: int) -> Finished:
    """What all ranks left, as one."""
    codes, outs, errs = zip(*train(experiment, ranks=ranks, timeout=150), strict=True)
    return Finished(max(codes), "".join(outs), "".join(errs))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder with text, experiment files and shards; ``ds-seq prepare`` has made the latter."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    lab = Lab(folder / "lab")
    lab.folder.mkdir(exist_ok=True)
    _once(lab.folder, "prepare", lambda: _prepare(lab.folder))
    return lab


@pytest.fixture(scope="session")
def dense_training(lab: Lab) -> Finished:
    """What the dense training printed."""
    return _once(lab.folder, "dense", lambda: _train(lab.dense, 1))


@pytest.fixture(scope="session")
def dense_run(lab: Lab, dense_training: Finished) -> Path:
    """A trained dense model: one process, no launcher."""
    dense_training.check()
    return lab.folder / "runs" / "dense"


@pytest.fixture(scope="session")
def moe_training(lab: Lab) -> Finished:
    """What the Mixture-of-Experts training printed."""
    return _once(lab.folder, "moe", lambda: _train(lab.moe, 2))


@pytest.fixture(scope="session")
def moe_run(lab: Lab, moe_training: Finished) -> Path:
    """A trained model with experts: two processes, experts spread over them, ZeRO 1."""
    moe_training.check()
    return lab.folder / "runs" / "moe"
