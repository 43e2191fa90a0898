"""The versions of the config that a run has been trained with: `history.json` in its folder.

`config.yaml` is the newest version. A run that resumes with other settings begins a new version at
the update of its checkpoint; the earlier ones are kept here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_seq import files
from ds_seq.config.changes import (
    DATA,
    GROUP,
    HARMLESS,
    VALID_DATA,
    Change,
    changes,
    refuse,
    score_changes,
    settings,
)
from ds_seq.config.deepspeed import load_deepspeed_json
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import ParallelDataset
from ds_seq.data.source import Dataset, InParts
from ds_seq.data.text import TextDataset
from ds_seq.distill.teacher import CachedTeacher
from ds_seq.names import HISTORY_FILE
from ds_seq.runs.open import open_run, weights_fingerprint
from ds_seq.runs.versions import Version, config_of, read_versions


@dataclass(frozen=True)
class History:
    """All versions of a run's config, and how the last one differs from that of the checkpoint.

    Attributes:
        versions: the versions in order; the last one is the present.
        found: changes since the version that has written the checkpoint.
        notes: messages for the log.
        scores_compare: whether the best score so far means what it meant before these changes.
    """

    versions: tuple[Version, ...]
    found: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    scores_compare: bool = True

    def write(self, folder: Path) -> None:
        """Write the versions to the run folder."""
        versions = [asdict(version) for version in self.versions]
        files.write_json(folder / HISTORY_FILE, {"versions": versions})


def run_facts(config: ExperimentConfig, world_size: int) -> dict[str, Any]:
    """Return what a run is made of besides its experiment and its data."""
    return {
        GROUP: config.train.group(world_size),
        "deepspeed": load_deepspeed_json(config.train.deepspeed),
    }


def data_facts(train_set: Dataset, valid_set: Dataset | None) -> dict[str, Any]:
    """Return the fingerprints of the data of a run."""
    return {
        DATA: _fingerprints(train_set),
        VALID_DATA: None if valid_set is None else _fingerprint(valid_set),
    }


def teacher_fingerprint(config: ExperimentConfig, cached: CachedTeacher | None) -> str | None:
    """Return the fingerprint of the teachers of a run, whose names may stand for others by now.

    Raises:
        UserError: a teacher cannot be opened.
    """
    if config.distillation is None:
        return None
    if cached is not None:
        weights = cached.weights
    else:
        teachers, checkpoint = config.distillation.teachers, config.distillation.checkpoint
        weights = [weights_fingerprint(open_run(name, checkpoint)) for name in teachers]
    return hashlib.sha256("\n".join(weights).encode()).hexdigest()


def _fingerprints(dataset: Dataset) -> str | dict[str, str]:
    """Return the fingerprint of each corpus, so that messages can name the one that has changed."""
    if isinstance(dataset, InParts) and len(dataset.parts) > 1:
        return {part.name: dataset.fingerprint_of(n) for n, part in enumerate(dataset.parts)}
    return _fingerprint(dataset)


def _fingerprint(dataset: Dataset) -> str:
    """Return the fingerprint of the source of a dataset, or if it has none, of its lengths."""
    if isinstance(dataset, ParallelDataset | TextDataset):
        return dataset.source.fingerprint
    if isinstance(dataset, InParts):
        return dataset.fingerprint_of(0)
    return hashlib.sha256(np.ascontiguousarray(dataset.lengths, np.int64).tobytes()).hexdigest()


def first_version(config: ExperimentConfig, facts: dict[str, Any]) -> History:
    """Return the history of a run that starts."""
    return History((Version(0, config.model_dump(mode="json"), facts),))


def resumed(
    folder: Path,
    update: int,
    config: ExperimentConfig,
    facts: dict[str, Any],
    allowed: Sequence[str],
) -> History:
    """Compare the present config with the one that has written the checkpoint.

    Versions that began at later updates than the checkpoint's are dropped, like those updates.

    Args:
        folder: the run folder.
        update: update of the checkpoint.
        config: the present experiment.
        facts: what else the run is made of now.
        allowed: keys whose changes the user allows.

    Raises:
        UserError: a change makes nonsense of the run, or what is recorded is damaged.
    """
    versions = [version for version in read_versions(folder) if version.update < max(update, 1)]
    last = versions[-1]
    before, now = settings(config_of(last, folder), last.facts), settings(config, facts)
    found = changes(before, now)
    refuse(found, allowed, now, str(folder))
    notes = [
        f"since update {version.update}: {text}" for version in versions for text in version.changes
    ]
    notes += [f"since update {update}: {_described(change)}" for change in found]
    if not last.facts:
        notes.append(
            f"{folder}: cannot verify that the data are those of the run so far: an earlier "
            "version of ds_seq did not record them"
        )
    if rescored := score_changes(found, config.validation.best):
        notes.append(
            "scores of earlier validations are not compared with later ones, because of "
            f"{', '.join(change.key for change in rescored)}; the best checkpoint so far is kept"
        )
    if found or not last.facts:
        new = config.model_dump(mode="json")
        versions.append(Version(update, new, facts, tuple(map(_described, found))))
    return History(tuple(versions), tuple(found), tuple(notes), not rescored)


def _described(change: Change) -> str:
    return str(change) if change.effect == HARMLESS else f"{change} (changes the training)"
