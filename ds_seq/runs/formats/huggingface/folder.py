"""The files of a Hugging Face folder: settings and tensors; nothing in them is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
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


class FolderTensors(Mapping[str, Tensor]):
    """All tensors of a folder by their names; each is read when it is looked up.

    A model of several files has an index, and a file is opened when one of its tensors is read.

    Args:
        folder: the folder.

    Attributes:
        files: the files with the tensors.

    Raises:
        UserError: a file is missing or damaged; also when a tensor is read.
    """

    def __init__(self, folder: Path) -> None:
        self._open: dict[Path, Any] = {}
        if (folder / _INDEX).is_file():
            index = read_settings(folder, _INDEX).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise UserError(f"{folder / _INDEX}: damaged (no weight_map); copy it again")
            self._where = {str(key): inside(folder, str(name)) for key, name in index.items()}
        else:
            whole = _whole_file(folder)
            self._where = dict.fromkeys(self._file(whole).keys(), whole)
        self.files = sorted(set(self._where.values()))
        for path in self.files:
            if not path.is_file():
                raise UserError(f"{path}: missing; copy the whole folder again")

    def __getitem__(self, name: str) -> Tensor:
        path = self._where[name]
        try:
            tensor: Tensor = self._file(path).get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error}); copy it again") from None
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor without reading it."""
        shape: list[int] = self._file(self._where[name]).get_slice(name).get_shape()
        return shape

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            if not path.is_file():
                raise UserError(f"{path}: missing; copy the whole folder again")
            try:
                self._open[path] = safe_open(str(path), framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); copy it again") from None
        return self._open[path]


def _whole_file(folder: Path) -> Path:
    if not (folder / _WHOLE).is_file() and (folder / _PICKLED).is_file():
        raise UserError(
            f"{folder}: has only {_PICKLED}, which could run code; let transformers write "
            f"{_WHOLE}: `AutoModel.from_pretrained(...).save_pretrained(...)`"
        )
    if not (folder / _WHOLE).is_file():
        raise UserError(f"{folder}: has no {_WHOLE}; give a folder that `save_pretrained` wrote")
    return folder / _WHOLE
