"""Files with only some parts of a trained model: adapters, or low-rank changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump, parse_experiment
from ds_seq.config.model import ModelConfig
from ds_seq.config.outside import LOADING
from ds_seq.errors import UserError
from ds_seq.names import ADAPTERS
from ds_seq.runs.card import LoadedRun, StoredRun
from ds_seq.runs.formats.ds_seq import CONFIG_KEY
from ds_seq.weights.fill import model_tensors
from ds_seq.weights.joined import (
    BASE_KEY,
    PARTS_KEY,
    ROUNDED_KEY,
    JoinedSource,
    base_fingerprint,
    base_of,
)
from ds_seq.weights.meta import FORMAT_VERSION, VOCAB_HASH_KEY
from ds_seq.weights.selection import Selection, adapter_of
from ds_seq.weights.source import FORMAT_KEY, TensorFile, save_tensors


def write_part(loaded: LoadedRun, only: Sequence[str], path: Path) -> None:
    """Write some parts of a model, with a fingerprint of the rest.

    Args:
        loaded: the whole model, in float32.
        only: `adapters`, `adapters.ID` or `lora`; at least one.
        path: file to write.

    Raises:
        UserError: the model does not have such a part, or it is no part that can stand alone.
    """
    tensors = {name: value.detach().contiguous() for name, value in model_tensors(loaded.model)}
    selection = Selection(only)
    for entry in only:
        if entry not in ("adapters", "lora") and not entry.startswith(ADAPTERS):
            raise UserError(f"--only {entry}: only adapters, adapters.ID and lora stand alone")
    idle = selection.idle(tensors)
    if idle:
        raise UserError(f"--only {idle[0]}: {loaded.source} has no such part")
    parts = {name: value for name, value in tensors.items() if selection.has(name)}
    config = loaded.require_experiment()
    precision = config.train.precision
    header = {
        CONFIG_KEY: dump(_without_others(config, parts)),
        VOCAB_HASH_KEY: loaded.tokenizers.fingerprint,
        BASE_KEY: base_fingerprint(tensors.__getitem__, base_of(tensors, parts), precision),
        ROUNDED_KEY: precision,
        PARTS_KEY: " ".join(only),
        FORMAT_KEY: str(FORMAT_VERSION),
    }
    save_tensors(parts, path, header)


def _without_others(config: ExperimentConfig, parts: dict[str, Any]) -> ExperimentConfig:
    """Return the experiment with the adapters of the parts only."""
    ids, model = {adapter_of(name) for name in parts}, config.model
    changes: dict[str, Any] = {}
    if model.adapters is not None:
        adapters = model.adapters
        kept = [name for name in adapters.ids if name in ids]
        changes["adapters"] = None
        if kept:
            tags = {tag: name for tag, name in adapters.tags.items() if name in kept}
            active = adapters.active if adapters.active in kept else None
            update = {"ids": kept, "tags": tags, "active": active}
            changes["adapters"] = adapters.model_copy(update=update)
    if not any(".lora." in name for name in parts):
        changes["lora"] = None
    train = config.train.model_copy(update={"freeze": [], "trainable": []})  # may name others
    model = model.model_copy(update=changes)
    return config.model_copy(update={"model": model, "train": train})


def add_part(stored: StoredRun, path: Path) -> StoredRun:
    """Return a model with the parts of a file; `check_base` is left to the caller.

    Raises:
        UserError: the file has no parts, they belong to another vocabulary, or the model has parts
            of its own in their place.
    """
    stored.require_full_precision()
    file = TensorFile(path)
    header = file.metadata()
    if BASE_KEY not in header or CONFIG_KEY not in header:
        raise UserError(f"{path}: not a part of a model, as `ds-seq export --only` writes it")
    if header.get(VOCAB_HASH_KEY) != stored.tokenizers.fingerprint:
        raise UserError(f"{path}: has another vocabulary than {stored.source}")
    theirs = parse_experiment(header[CONFIG_KEY].encode(), path, LOADING).model
    model = _joined_config(stored.model_config, theirs, path)
    experiment = stored.experiment
    if experiment is not None:
        experiment = experiment.model_copy(update={"model": model})
    weights = JoinedSource(stored.weights, file)
    return replace(stored, model_config=model, weights=weights, experiment=experiment)


def _joined_config(base: ModelConfig, part: ModelConfig, path: Path) -> ModelConfig:
    changes: dict[str, Any] = {}
    for name, own, new in (
        ("adapters", base.adapters, part.adapters),
        ("lora", base.lora, part.lora),
    ):
        if new is None:
            continue
        if own is not None:
            raise UserError(f"{path}: the model has model.{name} of its own; use its base")
        changes[name] = new
    return base.model_copy(update=changes)
