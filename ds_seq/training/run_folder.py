"""The folder of a run: checking what it holds before a training, and writing the run's files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_seq import files
from ds_seq.config.deepspeed import engine_config_for
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.errors import UserError
from ds_seq.names import LOG_FILE, METRICS_FILE, PROFILE_FOLDER, STARTS_FILE
from ds_seq.runs.formats.ds_seq import CONFIG_FILE, EXPORT_FILE, open_tokenizers
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.vocab_file import save_tokenizers
from ds_seq.training.checkpoint_folder import delete_all
from ds_seq.training.history import History, first_version, resumed
from ds_seq.training.resume_state import ResumeState
from ds_seq.training.run_log import OLD
from ds_seq.training.trackers import OnFigures
from ds_seq.weights.meta import CHECKPOINTS, VOCAB_HASH_KEY, read_meta

_OLD_FILES = (
    METRICS_FILE,
    "tensorboard",
    CHECKPOINTS,
    LOG_FILE,
    STARTS_FILE,
    PROFILE_FOLDER,
)


@dataclass(frozen=True)
class RunSetup:
    """What is decided before anything is built.

    Attributes:
        config: the experiment.
        engine_config: config dictionary for DeepSpeed.
        folder: folder of the run.
        checkpoint: checkpoint to resume from; None: train from scratch.
        overwrite: whether to delete an earlier run.
        on_figures: function that gets the figures of the run on rank 0, besides its trackers.
    """

    config: ExperimentConfig
    engine_config: dict[str, Any]
    folder: Path
    checkpoint: Path | None
    overwrite: bool
    on_figures: OnFigures | None = None


def lock_run(folder: Path) -> files.Lock:
    """Lock a run folder against other trainings.

    Raises:
        UserError: another training uses the folder.
    """
    return files.Lock(
        folder / files.LOCK_FILE, folder, "stop that training first, or give another name="
    )


def set_up(
    config: ExperimentConfig,
    world_size: int,
    resume: bool,
    overwrite: bool,
    checkpoint: Path | None,
) -> RunSetup:
    """Inspect the run folder without writing anything.

    Args:
        config: the experiment.
        world_size: number of ranks.
        resume: whether an earlier run is continued.
        overwrite: whether an earlier run of this name may be deleted.
        checkpoint: checkpoint to resume from; None: train from scratch.

    Raises:
        UserError: the number of ranks does not fit the run, or the folder holds something else.
    """
    engine_config = engine_config_for(config, world_size=world_size)
    folder = config.run_folder
    if (folder / EXPORT_FILE).exists():
        raise UserError(f"{folder}: holds an exported model; give the run another name=")
    _check_not_input(folder, config)
    has_run = any((folder / name).exists() for name in _OLD_FILES)
    if has_run and not (resume or overwrite):
        raise UserError(
            f"{folder}: holds an earlier run; give --resume to continue it, --overwrite to "
            "delete it, or another name="
        )
    return RunSetup(config, engine_config, folder, checkpoint, overwrite)


def _check_not_input(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a run folder whose model the run also reads: it would be replaced."""
    distillation = config.distillation
    read = {} if distillation is None else dict.fromkeys(distillation.teachers, "criterion.teacher")
    if config.train.init_from is not None:
        read[config.train.init_from] = "train.init_from"
    for name, key in read.items():
        if folder.exists() and Path(name).exists() and folder.samefile(name):
            raise UserError(f"{folder}: is {key} and the run folder; give the run another name=")


def check_vocab(folder: Path, checkpoint: Path, tokenizers: Tokenizers) -> None:
    """Refuse to resume with another vocabulary, in which the same ids mean other subwords.

    The run's own copies of config and vocabulary, which a resume writes again, are read only for a
    checkpoint of an earlier version.

    Raises:
        UserError: the run in `folder` was trained with other tokenizers.
    """
    notes: Mapping[str, Any] = read_meta(checkpoint)
    old = str(notes.get(VOCAB_HASH_KEY) or open_tokenizers(folder).fingerprint)
    new = tokenizers.fingerprint
    if old != new:
        raise UserError(
            f"{folder}: was trained with vocabulary {old[:12]}, but the data have {new[:12]}; "
            "give --resume the data of the run, or start another run with another name="
        )


def set_up_history(setup: RunSetup, facts: dict[str, Any], allowed: Sequence[str]) -> History:
    """Begin the history of a run, or compare the experiment with that of its checkpoint.

    Args:
        setup: the run.
        facts: what the run is made of besides the experiment.
        allowed: options whose changes are allowed in any case.

    Raises:
        UserError: the run cannot go on with this experiment; see `ds_seq.training.history`.
    """
    if setup.checkpoint is None:
        return first_version(setup.config, facts)
    update = read_meta(setup.checkpoint, ResumeState)["progress"]["update"]
    return resumed(setup.folder, update, setup.config, facts, allowed)


def write_run_files(setup: RunSetup, tokenizers: Tokenizers, history: History) -> None:
    """Write all files that the folder needs to translate on its own.

    Called after all input has been checked, so that a mistake never deletes an earlier run.
    """
    folder = setup.folder
    with files.writing(folder):
        if setup.overwrite:
            _delete_run(folder)
        files.remove_leftovers(folder)
        history.write(folder)
        files.write_text(folder / CONFIG_FILE, dump(setup.config))
        files.write_json(folder / "deepspeed.json", setup.engine_config)
        save_tokenizers(tokenizers, folder, setup.config.data.vocab.joint)


def _delete_run(folder: Path) -> None:
    """Delete what a training has written; links, and what they point to, are the user's."""
    old_metrics = [path.name for path in folder.glob(f"{METRICS_FILE}{OLD}*")]
    for name in (*_OLD_FILES, *old_metrics):
        path = folder / name
        if name == CHECKPOINTS and path.is_dir():
            delete_all(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink(missing_ok=True)
