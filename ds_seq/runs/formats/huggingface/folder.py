"""The files of a Hugging Face folder: settings and tensors; nothing in them is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.records import inside, read_limited

_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
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
    for index in _INDEX:
        if (folder / index).is_file():
            files = sorted(set(read_settings(folder, index).get("weight_map", {}).values()))
            return {k: v for name in files for k, v in _read(inside(folder, name)).items()}
    for name in _WHOLE:
        if (folder / name).is_file():
            return _read(folder / name)
    raise UserError(f"{folder}: has no {_WHOLE[0]}; give a folder that `save_pretrained` wrote")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the whole folder again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
    except Exception as error:  # of the reader of pickles, which refuses all but tensors
        raise UserError(f"{path}: is not read, for it holds more than tensors ({error})") from None
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
