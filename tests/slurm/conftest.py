"""One cluster and one tiny experiment with experts, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.toy import write_toy
from tests.slurm.cluster import Cluster, cluster, why_not
from tests.system.commands import REPOSITORY
from tests.system.forked import command

_EXPERIMENT = """\
name: moe
run_dir: {folder}/run
data:
  source_lang: en
  target_lang: de
  dir: {folder}/data
  raw: {{train: {{source: {folder}/text/train.en, target: {folder}/text/train.de}}}}
  max_source_length: 32
  max_target_length: 32
  vocab: {{size: 150, model_type: bpe}}
model:
  {{d_model: 32, encoder_layers: 2, decoder_layers: 2, num_heads: 2, ffn_dim: 64, dropout: 0.1,
    max_positions: 64, moe: {{num_experts: 4, top_k: 1, every: 2, capacity_factor: null}}}}
criterion: {{name: model_and_base, loss_weights: {{load_balance: 0.01}}}}
optimizer: {{name: adamw, lr: 5e-3}}
scheduler: {{name: inverse_sqrt, warmup_updates: 5}}
train:
  {{deepspeed: {repository}/configs/ds_config/zero1.json, expert_parallel: 2, max_tokens: 500,
    max_updates: 20, log_every: 1, validate_every: null, save_every: 10, tensorboard: false}}
generation: {{beam: 2}}
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    if (reason := why_not()) is not None:
        pytest.skip(f"no SLURM can be started here: {reason}")
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment file for two ranks, its text and its shards."""
    folder = tmp_path_factory.mktemp("lab")
    write_toy(folder / "text", train=1000, held_out=40)
    path = folder / "moe.yaml"
    text = _EXPERIMENT.format(folder=folder, repository=REPOSITORY)
    path.write_text(text, encoding="utf-8")
    command("prepare", path)[0].check()
    return path
