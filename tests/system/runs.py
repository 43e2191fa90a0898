"""What a run folder holds, and the settings of tiny runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ds_seq.weights.meta import VOCAB_HASH_KEY

TINY = ("model.d_model=16", "model.ffn_dim=32", "train.max_tokens=4000", "train.tensorboard=false")
"""Updates that take no time; an epoch has a few of them."""
NO_VALIDATION = ("train.validate_every=null", "train.save_every=1000")


class Lab(NamedTuple):
    """The folder shared by the tests, written only by the fixtures that create it."""

    folder: Path

    @property
    def dense(self) -> Path:
        """Experiment file of a dense model."""
        return self.folder / "dense.yaml"

    @property
    def moe(self) -> Path:
        """Experiment file of a model with experts, for two ranks."""
        return self.folder / "moe.yaml"

    def text(self, name: str) -> Path:
        """Raw text, such as ``test.en``."""
        return self.folder / "text" / name


def records(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of the run's log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """Training loss by update."""
    return {line["update"]: line["loss"] for line in records(run)}


def checkpoints(run: Path) -> list[int]:
    """Updates of which there is a checkpoint."""
    names = (path.name.removeprefix("update_") for path in run.glob("checkpoints/update_*"))
    return sorted(int(name) for name in names if name.isdigit())  # others are still written


def forget_vocab(run: Path) -> None:
    """Make checkpoints of an older kind, which do not say what vocabulary they belong to."""
    for meta in run.glob("checkpoints/*/checkpoint.json"):
        notes = json.loads(meta.read_text())
        del notes[VOCAB_HASH_KEY]
        meta.write_text(json.dumps(notes))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below ``folder``; equal ones mean that nothing was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    stats = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
