"""Run folders as a training writes them, without a model."""

from __future__ import annotations

from pathlib import Path

from ds_seq.config.load import read_experiment
from ds_seq.distributed import World
from ds_seq.training.history import first_version
from ds_seq.training.provenance import record_start
from ds_seq.training.run_log import RunLog


def make_run(folder: Path, *overrides: str, updates: int = 20) -> RunLog:
    """A run with some updates, written as a training does, whose log is still open."""
    base = {
        "name": folder.name,
        "data": {"source_lang": "en", "target_lang": "de", "dir": "d"},
        "validation": {"metrics": [], "best": "loss"},
    }
    folder.mkdir(parents=True)
    first_version(read_experiment(base, overrides), {}).write(folder)
    record_start(folder, World(), 0, 100)
    log = RunLog(folder, True, False, 100, 0)
    for update in range(10, updates + 1, 10):
        figures = {"loss": 4.0, "tokens_per_second": 100.0 * update, "load": [0.5] * 4}
        log.record("train", update, figures)
        log.record("valid", update, {"bleu": 7.0, "best_score": 7.5, "best_by": "bleu"})
    return log
