"""The weights of a Hugging Face folder as a `TensorSource`, for models that stay where they are.

A tensor is converted when it is read. With experts distributed over ranks, each rank reads its own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from torch import Tensor

from ds_seq import files
from ds_seq.config.huggingface.folder import read_settings
from ds_seq.errors import UserError
from ds_seq.records import read_limited
from ds_seq.runs.formats.huggingface.describe import describe
from ds_seq.runs.formats.huggingface.folder import FolderTensors
from ds_seq.runs.formats.huggingface.mapping import Names, Orders, take
from ds_seq.text.huggingface import HuggingFaceTokenizer
from ds_seq.text.tokenizer import Tokenizers

LINK_FILE = "linked.json"
"""File of a run folder that names the folder with its weights."""
_CONFIG = "config.json"


class HuggingFaceSource:
    """Read access to our tensors in a Hugging Face folder; see `TensorSource`.

    Args:
        folder: the folder.
        tensors: its tensors.
        names: what each of our tensors is made of.
        orders: rows of theirs for our ids.
    """

    def __init__(self, folder: Path, tensors: FolderTensors, names: Names, orders: Orders) -> None:
        self.path, self.files = folder, tensors.files
        self._tensors, self._names, self._orders = tensors, names, orders

    def keys(self) -> set[str]:
        """See `TensorSource.keys`."""
        return set(self._names)

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        """See `TensorSource.keys_of`."""
        return [name]

    def num_experts(self, name: str) -> int:
        """See `TensorSource.num_experts`."""
        parts = self._names.get(name, [])
        return len(parts) if parts and parts[0].expert is not None else 0

    def num_values(self) -> int:
        """See `TensorSource.num_values`."""
        parts = [part for parts in self._names.values() for part in parts]
        return sum(math.prod(self._tensors.shape(part.name)) for part in parts)

    def read(self, key: str) -> Tensor:
        """See `TensorSource.read`."""
        return self.read_stacked(key, None, 0)

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """See `TensorSource.read_stacked`; other experts are not read."""
        if name not in self._names:
            raise UserError(f"{self.path}: has no tensor {name!r}; it belongs to another model")
        parts = self._names[name]
        if first_expert is not None:
            parts = parts[first_expert : first_expert + num_experts]
        return take({name: parts}, name, self._tensors, self._orders, str(self.path))

    def verify(self) -> None:
        """Do nothing: the files have no checksums."""


def orders_of(tokenizers: Tokenizers) -> Orders:
    """Return the row of theirs for each id of both sides."""
    source, target = tokenizers
    assert isinstance(source, HuggingFaceTokenizer) and isinstance(target, HuggingFaceTokenizer)
    return Orders(source.permutation(), target.permutation())


def link_to(folder: Path) -> str:
    """Return the content of a `LINK_FILE` for a folder."""
    path = folder.resolve()
    content = {"huggingface": str(path), "config_sha256": files.fingerprint(path / _CONFIG)}
    return json.dumps(content, indent=1) + "\n"


def open_link(link: Path, tokenizers: Tokenizers) -> HuggingFaceSource:
    """Open the weights that a `LINK_FILE` names.

    Args:
        link: the file.
        tokenizers: tokenizers of the run.

    Raises:
        UserError: it is damaged, or the folder is missing or has changed.
    """
    try:
        content = json.loads(read_limited(link))
        folder, checksum = Path(content["huggingface"]), content["config_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{link}: damaged ({error}); import the folder again") from None
    settings = read_settings(folder, _CONFIG)
    if files.fingerprint(folder / _CONFIG) != checksum:
        raise UserError(f"{folder / _CONFIG}: has changed since the import; import it again")
    tensors = FolderTensors(folder)
    names = describe(settings, tensors.facts(settings), tensors, str(folder)).names
    return HuggingFaceSource(folder, tensors, names, orders_of(tokenizers))
