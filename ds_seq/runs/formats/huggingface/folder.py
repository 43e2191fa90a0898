"""The files of a Hugging Face folder: settings and tensors; nothing in them is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.records import inside, read_limited

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_MOST_BYTES = 1 << 26


def read_settings(folder: Path, name: str, is_needed: bool = True) -> dict[str, Any]:
    """Read a JSON file of the folder.

    Raises:
        UserError: it is damaged, or needed and missing.
    """
    path = folder / name
    if not path.is_file():
        if not is_needed:
            return {}
        what = f"has no {name}" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; give a folder that `save_pretrained` wrote")
    try:
        content = json.loads(read_limited(path, _MOST_BYTES))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object; copy it again")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of the folder by their names.

    Raises:
        UserError: a file is missing or damaged.
    """
    if (folder / _INDEX).is_file():
        files = sorted(set(read_settings(folder, _INDEX).get("weight_map", {}).values()))
        return {k: v for name in files for k, v in _read(inside(folder, name)).items()}
    if not (folder / _WHOLE).is_file() and (folder / _PICKLED).is_file():
        raise UserError(
            f"{folder}: has only {_PICKLED}, which could run code; let transformers write "
            f"{_WHOLE}: `AutoModel.from_pretrained(...).save_pretrained(...)`"
        )
    if not (folder / _WHOLE).is_file():
        raise UserError(f"{folder}: has no {_WHOLE}; give a folder that `save_pretrained` wrote")
    return _read(folder / _WHOLE)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the whole folder again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
