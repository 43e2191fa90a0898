"""What `ds-seq prepare` and `ds-seq train` would miss on this machine; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ds_seq.config.data import ShardsConfig, SplitConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.optim import ConstantConfig, InverseSqrtConfig

_WITHOUT = "or use `ds-seq check --elsewhere` if the run is for another machine"


def unmet(config: ExperimentConfig) -> list[str]:
    """Return one line for each thing that is missing, with its key, and one about what to do."""
    lines = [f"{key}: {problem}" for key, problem in _missing(config)]
    return [*lines, f"paths are seen from {Path.cwd()}: check them, {_WITHOUT}"] if lines else []


def warmup_error(config: ExperimentConfig) -> str | None:
    """Return a line if the run ends before the learning rate has reached its peak, else None.

    Schedules that decay to a given update are checked with the experiment itself.
    """
    scheduler, updates = config.scheduler, config.train.max_updates
    if not isinstance(scheduler, InverseSqrtConfig | ConstantConfig):
        return None
    if scheduler.warmup_updates <= updates:
        return None
    return (
        f"scheduler.warmup_updates: {scheduler.warmup_updates} is longer than the run, which ends "
        f"at update {updates} (train.max_updates), before the learning rate has reached its peak; "
        "lower it"
    )


def train_manifest(config: ExperimentConfig) -> Mapping[str, Any] | None:
    """Return the manifest of the training shards, or None if there is none that can be read."""
    try:
        text = (Path(config.data.dir) / "train.manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _missing(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    if isinstance(config.data.source, ShardsConfig):
        yield from _missing_text(config)
    if config.train.init_from is not None:
        yield from _absent("train.init_from", config.train.init_from, "run or exported model")
    where, _ = config.base_criterion
    criterion = config.distillation
    if criterion is None:
        return
    teachers = criterion.teacher if criterion.teacher is not None else []
    for teacher in [teachers] if isinstance(teachers, str) else teachers:
        yield from _absent(f"{where}.teacher", teacher, "run or exported model")
    if criterion.cache is not None:
        yield from _absent(f"{where}.cache", criterion.cache, "folder; see `ds-seq teacher-cache`")


def _missing_text(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    raw, folder = config.data.raw, config.data.dir
    is_prepared = (Path(folder) / "train.manifest.json").is_file()
    if not is_prepared:
        if not raw.train:
            yield (
                "data.raw.train",
                f"missing, and data.dir {folder} has no shards; name the training text, such as "
                "{source: corpus.en, target: corpus.de}",
            )
        yield from _absent_files("data.raw.train", raw.train)
        yield from _absent_files("data.raw.test", raw.test)
    if not is_prepared or (config.train.validate_every is not None and config.validation.metrics):
        yield from _absent_files("data.raw.valid", raw.valid)
    if config.train.validate_every is not None and not raw.valid:
        if not (Path(folder) / "valid.manifest.json").is_file():
            yield (
                "data.raw.valid",
                "missing: name the validation text, or set train.validate_every=null and "
                "train.save_every",
            )


def _absent_files(key: str, pairs: list[SplitConfig]) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        for path in (pair.source, pair.target):
            yield from _absent(key, path, "file")


def _absent(key: str, path: str, kind: str) -> Iterator[tuple[str, str]]:
    if not Path(path).exists():
        yield key, f"{path}: no such {kind}"
