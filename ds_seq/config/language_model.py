"""The section `model` of a trained language model, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_seq.config.yaml_file import read_yaml
from ds_seq.errors import UserError
from ds_seq.names import CONFIG_FILE


def model_of_run(run: str) -> dict[str, Any]:
    """Return the section `model` of a run folder or an exported folder; it is not checked.

    Raises:
        UserError: there is no such folder, or its experiment cannot be read.
    """
    file = Path(run) / CONFIG_FILE
    if not file.is_file():
        raise UserError(
            f"{run}: not a folder with {CONFIG_FILE}; name the run folder or the exported folder "
            "of a trained language model"
        )
    section = read_yaml(file).data.get("model")
    if not isinstance(section, dict):
        raise UserError(f"{file}: has no section model; name the folder of a trained run")
    return section
