"""The tensors of a Hugging Face folder; nothing in it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ds_seq.config.huggingface.facts import Facts, read_facts
from ds_seq.config.huggingface.folder import StoredTensors
from ds_seq.errors import UserError


class FolderTensors(Mapping[str, Tensor]):
    """All tensors of a folder by their names; each is read when it is looked up.

    Args:
        folder: the folder.

    Attributes:
        files: the files with the tensors.

    Raises:
        UserError: a file is missing or damaged; also when a tensor is read.
    """

    def __init__(self, folder: Path) -> None:
        self._stored = StoredTensors(folder)
        self._open: dict[Path, Any] = {}
        self.files = sorted(set(self._stored.values()))

    def __getitem__(self, name: str) -> Tensor:
        path = self._stored[name]
        if path not in self._open and not path.is_file():
            raise UserError(f"{path}: missing; copy the whole folder again")
        try:
            if path not in self._open:
                self._open[path] = safe_open(str(path), framework="pt", device="cpu")
            tensor: Tensor = self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); copy it again") from None
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor without reading it."""
        return self._stored.shape(name)

    def facts(self, settings: Mapping[str, Any]) -> Facts:
        """Return what the tensors say beyond the content of `config.json`."""
        return read_facts(settings, self._stored)
