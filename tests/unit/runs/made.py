"""Run folders as training leaves them, without a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from ds_seq.config.data import DataConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.config.model import ModelConfig
from ds_seq.config.validation import ValidationConfig
from ds_seq.models import build_model
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.weights.fill import expert_offsets, model_tensors
from ds_seq.weights.meta import FORMAT_VERSION
from ds_seq.weights.source import expert_key

SIZES = {"d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}


def experiment(model: Mapping[str, Any], **data: Any) -> ExperimentConfig:
    """A small experiment; ``model`` and ``data`` are raw sections."""
    section = {"source_lang": "en", "target_lang": "de", "dir": "data", **data}
    lengths = {"max_source_length": 8, "max_target_length": 8}
    return ExperimentConfig(
        name="small",
        data=DataConfig.model_validate({**lengths, **section}),
        model=TypeAdapter(ModelConfig).validate_python({**SIZES, **model}),
        validation=ValidationConfig(metrics=[], best="loss"),
    )


def write_checkpoint(run: Path, update: int, model: nn.Module) -> str:
    """A checkpoint, all by one rank; returns its name."""
    name = f"update_{update:08d}"
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    offsets = expert_offsets(model)
    tensors: dict[str, Tensor] = {}
    for key, value in model_tensors(model):
        if key in offsets:
            rows = enumerate(value.detach())
            tensors.update({expert_key(key, row): part.clone() for row, part in rows})
        else:
            tensors[key] = value.detach()
    file = folder / "weights.0.safetensors"
    save_file(tensors, str(file))
    meta = {"format_version": FORMAT_VERSION, "files": {file.name: file.stat().st_size}}
    (folder / "checkpoint.json").write_text(json.dumps(meta))
    return name


def write_run(
    run: Path,
    config: ExperimentConfig,
    vocab: SentencePieceTokenizer,
    models: Mapping[int, nn.Module],
) -> Path:
    """A run folder with one checkpoint for each of ``models``, by update; the first is the best."""
    run.mkdir()
    vocab.save(run / "vocab.model")
    (run / "config.yaml").write_text(dump(config), encoding="utf-8")
    names = [write_checkpoint(run, update, model) for update, model in models.items()]
    index = {"best": [{"name": names[0], "score": 2.0}], "last": [{"name": n} for n in names]}
    (run / "checkpoints" / "index.json").write_text(json.dumps(index))
    return run


def write_run_of_text(
    run: Path, text: Path, vocab: SentencePieceTokenizer, model: Mapping[str, Any]
) -> Path:
    """A run folder that knows its test text, in the folder ``text``, and translates it quickly."""
    test = {"source": str(text / "test.en"), "target": str(text / "test.de")}
    config = experiment(model, raw={"test": test})
    generation = config.generation.model_copy(update={"beam": 1, "max_len_a": 0.0, "max_len_b": 9})
    config = config.model_copy(update={"generation": generation})
    built = build_model(config.model, len(vocab), 1, 0, seed=4)
    return write_run(run, config, vocab, {1: built})
