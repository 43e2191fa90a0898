"""What the tests of averaging share: a run with experts, and the mean as numpy knows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ds_seq import cli
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.models import build_model
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import model_tensors
from tests.unit.runs.made import write_run

MOE = {"num_experts": 4, "router": "sigmoid"}
BIAS = "encoder.layers.1.feed_forward.gate.bias_steps"
UPDATES = (10, 20, 30)


def make_states(config: ExperimentConfig, vocab: SentencePieceTokenizer) -> list[nn.Module]:
    """A model after each of `UPDATES`; all tensors differ, counters and norms included."""
    models = []
    for update in UPDATES:
        model = build_model(config.model, len(vocab), 1, 0, seed=update)
        generator = torch.Generator().manual_seed(update)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            model.get_buffer(BIAS).copy_(torch.tensor([update, -update, 2**40 + update, 0]))
        models.append(model)
    return models


def write_states(
    run: Path, config: ExperimentConfig, vocab: SentencePieceTokenizer, models: Sequence[nn.Module]
) -> Path:
    """A run folder with these states and their losses: the second is the best, then the third."""
    write_run(run, config, vocab, dict(zip(UPDATES, models, strict=True)))
    losses = zip(UPDATES, (2.5, 1.5, 2.0), strict=True)
    entries = [{"name": checkpoint(run, update).name, "score": loss} for update, loss in losses]
    index = {"last": entries, "best": [entries[1], entries[2], entries[0]]}
    (run / "checkpoints" / "index.json").write_text(json.dumps(index))
    return run


def checkpoint(run: Path, update: int) -> Path:
    """The folder of one checkpoint."""
    return run / "checkpoints" / f"update_{update:08d}"


def average_command(*arguments: str | int | Path) -> int:
    """The exit code of ``ds-seq average ARGUMENTS``."""
    return cli.main(["average", *map(str, arguments)])


def assert_mean(result: nn.Module, models: Sequence[nn.Module]) -> None:
    """Exact: numpy's float64 mean, rounded once; counters to the nearest whole number."""
    states = [dict(model_tensors(model)) for model in models]
    for name, value in model_tensors(result):
        values = np.stack([state[name].detach().numpy() for state in states])
        expected = values.mean(axis=0, dtype=np.float64)
        rounded = expected if value.is_floating_point() else np.round(expected)
        assert torch.equal(value, torch.from_numpy(rounded).to(value.dtype)), name


def bits(value: Tensor) -> Tensor:
    """Key for comparisons, which distinguishes 0.0 from -0.0."""
    return value.detach().contiguous().view(torch.uint8)
