"""Experiments: checked, prepared and trained.

Imports no torch, so that `ds_seq.check` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_seq.commands.check import Checked, examine
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import read_experiment
from ds_seq.config.outside import PREPARING, TRAINING
from ds_seq.plugins import trusting

if TYPE_CHECKING:
    from ds_seq.training.run import TrainingResult

Experiment = str | Path | Mapping[str, Any] | ExperimentConfig


def resolve(experiment: Experiment, *overrides: str) -> ExperimentConfig:
    """Read an experiment and return all its settings, the defaults included.

    Args:
        experiment: an experiment file, a mapping with its contents, or an `ExperimentConfig`.
        *overrides: settings to replace, such as `model.d_model=512`.

    Raises:
        UserError: the experiment is invalid; names every mistake and the nearest known name.
    """
    return read_experiment(experiment, overrides)


def check(
    experiment: Experiment,
    *overrides: str,
    world_size: int | None = None,
    gpu_memory: float | None = None,
    sentence_length: int | None = None,
    elsewhere: bool = False,
) -> Checked:
    """Look at an experiment, its files and its costs before a run, like `ds-seq check`.

    Args:
        experiment: see `resolve`.
        *overrides: see `resolve`.
        world_size: number of ranks; None if unknown.
        gpu_memory: memory of a GPU in GiB, for the largest batch that fits; None if unknown.
        sentence_length: tokens of a sentence, for costs; None: the mean of the data, or 32.
        elsewhere: whether the run is for another machine, so that files are not looked for.

    Returns:
        The settings, DeepSpeed's configuration, the number of parameters, memory, arithmetic and
        traffic, and notes.

    Raises:
        UserError: the experiment is invalid, or a file that it reads is missing.
    """
    found = examine(
        read_experiment(experiment, overrides),
        world_size,
        gpu_memory,
        sentence_length,
        elsewhere=elsewhere,
    )
    found.require()
    return found


def prepare(
    experiment: Experiment, *overrides: str, force: bool = False, trust: Sequence[str] = ()
) -> None:
    """Make the clean text, the vocabulary and the shards of an experiment, like `ds-seq prepare`.

    Args:
        experiment: an experiment file, a mapping with its contents, or an `ExperimentConfig`.
        *overrides: settings to replace, such as `data.workers=4`.
        force: whether to redo steps that are up to date.
        trust: names of code from outside ds_seq (`package.module:Name`) that may run if the
            experiment names it. Names in `overrides` need not be repeated.

    Raises:
        UserError: the experiment or its text is invalid, or it names code that is not trusted.
    """
    from ds_seq.tasks.prepare import prepare as prepare_data

    with trusting(trust):
        prepare_data(read_experiment(experiment, overrides, PREPARING), force)


def fit(
    experiment: Experiment,
    *overrides: str,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint: str | None = None,
    trust: Sequence[str] = (),
    allow_changes: Sequence[str] = (),
    on_figures: Callable[[int, Mapping[str, float]], object] | None = None,
) -> TrainingResult:
    """Train a model like `ds-seq train`, in this process or in all processes of a launcher.

    Args:
        experiment: an experiment file, a mapping with its contents, or an `ExperimentConfig`.
        *overrides: settings to replace, such as `train.max_updates=1000`.
        resume: resume from the run's newest checkpoint that is not damaged, or start from scratch
            if there is none.
        overwrite: delete an earlier run of this name.
        checkpoint: with `resume`, the checkpoint to resume from: `best`, `last`, a name or a path.
        trust: see `prepare`.
        allow_changes: see `ds-seq train --allow-change`.
        on_figures: called on rank 0 at every `train.log_every` and validation with the update and
            figures by name, such as `train/loss` or `valid/bleu`; if it fails, this is reported
            once, and the training continues without it.

    Returns:
        Why the training ended, its best score, and the run folder, which `load` accepts.

    Raises:
        UserError: the experiment, its data or its run folder is invalid, or it names code that is
            not trusted.
    """
    import atexit

    from ds_seq import distributed
    from ds_seq.training.run import run_training  # imports DeepSpeed

    atexit.register(distributed.shutdown)  # one process group for all trainings of the process
    try:
        with trusting(trust):
            return run_training(
                lambda: read_experiment(experiment, overrides, TRAINING),
                resume=resume,
                overwrite=overwrite,
                checkpoint=checkpoint,
                allow_changes=allow_changes,
                on_figures=on_figures,
            )
    finally:
        distributed.withdraw()
