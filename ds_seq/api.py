"""The Python interface of ds_seq: functions that do what the commands do.

    model = ds_seq.load("runs/x")  # a run folder or an export
    model.translate(["Hello.", "Goodbye."], beam=5)
    model.translate("Hello.", n_best=3)  # [Translation(text, score), ...]
    model.translate("Hello.", target_lang="fr")  # by a model of several languages
    model.score(["Hello."], ["Hallo."])  # [TargetScore(log_prob, token_scores, score)]

    ds_seq.prepare("my.yaml")
    result = ds_seq.fit("my.yaml", "train.max_updates=1000")
    ds_seq.load(result.folder)

What `load` returns is in `ds_seq.trained_model`.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import read_experiment
from ds_seq.config.outside import PREPARING, TRAINING
from ds_seq.errors import UserError
from ds_seq.generation.answers import Encoding, TargetScore, Translation
from ds_seq.plugins import nearest, trusting
from ds_seq.runs.card import ModelCard
from ds_seq.runs.fewer_layers import KeptLayers
from ds_seq.runs.open import DTYPES, INT8, ModelParts, load_packed, parse_device
from ds_seq.tasks.prepare import prepare as prepare_data
from ds_seq.trained_model import TrainedModel

if TYPE_CHECKING:
    from ds_seq.training.run import TrainingResult

__all__ = [
    "Encoding",
    "ModelCard",
    "TargetScore",
    "TrainedModel",
    "Translation",
    "UserError",
    "fit",
    "load",
    "prepare",
]

Experiment = str | Path | Mapping[str, Any] | ExperimentConfig


def load(
    path: str | Path,
    *,
    checkpoint: str = "best",
    device: str | torch.device | None = None,
    dtype: Literal["fp32", "bf16", "fp16", "int8"] | torch.dtype | None = None,
    trust: Sequence[str] = (),
    adapter: str | None = None,
    part: str | Path | None = None,
    layers: KeptLayers | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run folder, or a file or folder written by `ds-seq export`.
        checkpoint: `best`, `last`, the name of a checkpoint or a path.
        device: device such as `cpu` or `cuda:1`; None: a GPU if there is one.
        dtype: number format; None: as in training on a GPU, fp32 on a CPU. `int8` quantizes the
            weights and works only on a CPU.
        trust: names of code from outside ds_seq (`package.module:Name`) that may run if the model
            names it.
        adapter: adapter that all sentences pass through, or `none`; None: as the model's config
            says, by the tag of a sentence. See `TrainedModel.use_adapter`.
        part: file written by `ds-seq export --only`: adapters or low-rank changes for this model.
        layers: indices (from 0) of the layers to use, such as `{"encoder": [0, 2, 4]}`; None: all.

    Raises:
        UserError: the model, device, adapter or number format does not exist, or the model names
            code that is not trusted.
    """
    place = distributed.World().device if device is None else parse_device(str(device))
    with trusting(trust):
        parts = ModelParts(adapter, part, layers)
        run = load_packed(path, checkpoint, _dtype_name(dtype), place, parts=parts)
    return TrainedModel(run, place)


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

    Returns:
        Why the training ended, its best score, and the run folder, which `load` accepts.

    Raises:
        UserError: the experiment, its data or its run folder is invalid, or it names code that is
            not trusted.
    """
    from ds_seq.training.run import run_training  # imports DeepSpeed

    atexit.register(distributed.shutdown)  # one process group for all trainings of the process
    with trusting(trust):
        return run_training(
            lambda: read_experiment(experiment, overrides, TRAINING),
            resume=resume,
            overwrite=overwrite,
            checkpoint=checkpoint,
            allow_changes=allow_changes,
        )


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    names = {value: name for name, value in DTYPES.items()}
    if isinstance(dtype, torch.dtype):
        dtype = names.get(dtype, str(dtype))
    known = [*DTYPES, INT8]
    if dtype is not None and dtype not in known:
        hint = nearest(dtype, known)
        raise UserError(f"no number format {dtype!r}{hint}; there are {', '.join(known)}")
    return dtype
