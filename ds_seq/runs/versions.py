"""The file of a run that has all versions of its config: `history.json`; see `training.history`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.errors import UserError
from ds_seq.names import CONFIG_FILE, HISTORY_FILE
from ds_seq.records import Count, read_json, record

_REMEDY = f"remove it to compare with {CONFIG_FILE} only"


@record
@dataclass(frozen=True)
class Version:
    """One version of the config.

    Attributes:
        update: number of updates before the first one that was made with it.
        config: the experiment.
        facts: what else the run was made of; see `ds_seq.config.changes.settings`.
        changes: how it differs from the version before, as text.
    """

    update: Count
    config: dict[str, Any]
    facts: dict[str, Any]
    changes: tuple[str, ...] = ()


@record
class _Versions(TypedDict):
    """Content of `history.json`."""

    versions: Annotated[list[Version], Field(min_length=1)]


def read_versions(folder: Path) -> list[Version]:
    """Read the versions of a run; an older run has the one of its `config.yaml`.

    Raises:
        UserError: the file is damaged, or an older run has no valid `config.yaml`.
    """
    path = folder / HISTORY_FILE
    if not path.is_file():
        config = load_experiment(folder / CONFIG_FILE)
        return [Version(0, config.model_dump(mode="json"), {})]
    versions = read_json(path, _Versions, _REMEDY)["versions"]
    if versions[0].update != 0:
        raise UserError(
            f"{path}: is damaged (its first version does not begin at update 0); {_REMEDY}"
        )
    return versions


def config_of(version: Version, folder: Path) -> ExperimentConfig:
    """Return the experiment of a version.

    Raises:
        UserError: it is not valid.
    """
    try:
        return ExperimentConfig.model_validate(version.config)
    except ValidationError as error:
        raise UserError(
            f"{folder / HISTORY_FILE}: the config of update {version.update} is not valid "
            f"({error.error_count()} errors); {_REMEDY}"
        ) from None
