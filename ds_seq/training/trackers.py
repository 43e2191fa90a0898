"""Other places for the figures of a run: Weights & Biases and MLflow, if they are installed.

They get what `metrics.jsonl` gets, and are configured by their own environment variables, such as
`WANDB_MODE=offline` or `MLFLOW_TRACKING_URI`. A tracker that fails during a training is reported
once and left out from then on: the training is worth more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import UserError
from ds_seq.names import TrackerName

_PROJECT = "ds_seq"
_LONGEST_VALUE = 500
"""Characters of a parameter in MLflow."""


OnFigures = Callable[[int, Mapping[str, float]], object]
"""A function of the update and of figures by name, such as `train/loss` or `valid/bleu`."""


class Tracker(Protocol):
    """Takes the figures of a run, on rank 0."""

    def record(self, figures: Mapping[str, float], update: int) -> None:
        """Take figures by name, such as `train/loss`."""

    def end(self, succeeded: bool) -> None:
        """Finish the run."""


class _Wandb:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run: Any = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            config=dict(settings),
        )

    def record(self, figures: Mapping[str, float], update: int) -> None:
        self._run.log(dict(figures), step=update)

    def end(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


class _MLflow:
    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((folder.absolute() / "mlruns").as_uri())
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        self._mlflow: Any = mlflow
        mlflow.start_run(run_name=name)
        mlflow.log_params({key: str(value)[:_LONGEST_VALUE] for key, value in settings.items()})

    def record(self, figures: Mapping[str, float], update: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=update)

    def end(self, succeeded: bool) -> None:
        self._mlflow.end_run("FINISHED" if succeeded else "FAILED")


class Watch:
    """Gives the figures to a function of whoever has started the training in Python.

    Args:
        function: the function.
    """

    def __init__(self, function: OnFigures) -> None:
        self._function = function

    def record(self, figures: Mapping[str, float], update: int) -> None:
        """Call the function."""
        self._function(update, figures)

    def end(self, succeeded: bool) -> None:
        """Do nothing: whoever has started the training knows."""


_TRACKERS: dict[TrackerName, type[_Wandb] | type[_MLflow]] = {"wandb": _Wandb, "mlflow": _MLflow}


def open_trackers(
    names: Sequence[TrackerName], folder: Path, run_name: str, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Open trackers.

    Args:
        names: which ones.
        folder: the run folder.
        run_name: name of the run.
        settings: hyper-parameters of the run by dotted key.

    Raises:
        UserError: one is not installed, or cannot be reached.
    """
    opened: list[Tracker] = []
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"train.trackers: {name} is not installed; pip install {name}, or remove it"
            )
        try:
            opened.append(_TRACKERS[name](folder, run_name, settings))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"train.trackers: {name} cannot be started ({reason}); see its documentation, or "
                "remove it"
            ) from error
    return opened


def tracked(config: ExperimentConfig, folder: Path) -> tuple[dict[str, Any], list[Tracker]]:
    """Return the settings to show and the open trackers of a run. A collective.

    Raises:
        UserError: see `open_trackers`.
    """
    settings, opened = settings_of(config), []
    with distributed.shared_errors():
        if distributed.rank() == 0:
            opened = open_trackers(config.train.trackers, folder, config.name, settings)
    return settings, opened


def settings_of(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings of an experiment that are not defaults, by dotted key."""
    return dict(_flat(config.model_dump(mode="json", exclude_defaults=True), ""))


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            is_plain = value is None or isinstance(value, str | int | float)
            yield f"{prefix}{key}", value if is_plain else str(value)
