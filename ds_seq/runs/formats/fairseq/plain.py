"""Read a checkpoint of PyTorch as plain data: nothing that the file names is imported or called.

A pickle names functions and classes, which Python's own reader imports and calls. Here a name is
looked up in a short list: tensors and containers of Python. A class of another package, such as the
settings of fairseq and of omegaconf, becomes an inert object that only keeps its state. A name of
the standard library or of torch that is not on the list is an error, because no checkpoint of
fairseq has one.
"""

from __future__ import annotations

import argparse
import collections
import errno
import pickle
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ds_seq.errors import UserError

_BUILTINS = ("set", "frozenset", "dict", "list", "tuple", "bytearray", "complex", "int", "float",
             "bool", "str", "bytes", "object", "slice", "range")  # fmt: skip
_OLD_NAMES = {"long": "int", "unicode": "str", "xrange": "range"}  # of Python 2
_TORCH = (
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state",
)  # fmt: skip
# of these, values that no weight depends on are stored: they are not read, only kept
_UNREAD = frozenset(
    {"typing", "enum", "datetime", "pathlib", "_codecs", "copyreg", "copy_reg", "argparse",
     "collections"}
)  # fmt: skip


_CUT = "{}: is damaged: its end is missing; copy it again"


class Inert:
    """An object of a class that is not imported: its name, arguments and state, and no behavior."""

    origin = ""

    def __new__(cls, *arguments: Any, **more: Any) -> Inert:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.__dict__["_arguments"] = arguments
        return made

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """Do nothing more."""

    def __setstate__(self, state: Any) -> None:
        """Keep the state; attributes of dataclasses and of omegaconf become attributes here."""
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, Mapping):
                self.__dict__.update({str(key): value for key, value in part.items()})

    def append(self, item: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, items: Any) -> None:
        """Ignore items of a list."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item of a dictionary."""


class _Arguments(argparse.Namespace):
    """`argparse.Namespace`, whose items may be set by a pickle."""


def read_plain(path: Path) -> Any:
    """Return the content of a file that `torch.save` wrote: dictionaries, lists and tensors.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing or damaged, or it names what would run code.
    """
    _check_kind(path)
    module = SimpleNamespace(
        Unpickler=partial_class(path), load=partial(_load, path), __name__="plain"
    )
    try:
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a place in the file that is not there any more
            raise UserError(_CUT.format(path)) from None
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever a damaged pickle leads to
        if "central directory" in str(error):  # which is at the end of a zip file
            raise UserError(_CUT.format(path)) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: is damaged or no checkpoint of PyTorch ({reason}); copy it again"
        ) from None


def _check_kind(path: Path) -> None:
    """Refuse programs in a zip file, which torch would load in another way."""
    try:
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("constants.pkl") for name in file.namelist()):
                raise UserError(f"{path}: is a TorchScript program, not a checkpoint of fairseq")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(
            f"{path}: is a folder; give a checkpoint, such as checkpoint_best.pt"
        ) from None
    except (zipfile.BadZipFile, OSError):  # PyTorch before 1.6 wrote no zip files
        return


def partial_class(path: Path) -> type[pickle.Unpickler]:
    """Return a reader of pickles that looks names up in the list; `path` is for messages."""
    classes: dict[tuple[str, str], type[Inert]] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _find(path, classes, module, name)

    return Unpickler


def _load(path: Path, file: Any, **options: Any) -> Any:
    return partial_class(path)(file, **options).load()


def _find(path: Path, classes: dict[tuple[str, str], type[Inert]], module: str, name: str) -> Any:
    if module in ("builtins", "__builtin__") and name == "getattr":
        return partial(_member, path)
    known = _known(module, name)
    if known is not None:
        return known
    package = module.partition(".")[0]
    is_code = package in sys.stdlib_module_names or package in ("torch", "__builtin__")
    if is_code and package not in _UNREAD:
        raise UserError(
            f"{path}: names {module}.{name}, which no checkpoint of fairseq does; it may be made "
            "to run code and is not read"
        )
    key = (module, name)
    if key not in classes:
        classes[key] = type(name.rpartition(".")[2] or "Inert", (Inert,), {
            "origin": f"{module}.{name}"
        })  # fmt: skip
    return classes[key]


def _known(module: str, name: str) -> Any:
    """Return what is on the list."""
    if module in ("builtins", "__builtin__"):
        name = _OLD_NAMES.get(name, name)
        return getattr(__import__("builtins"), name) if name in _BUILTINS else None
    if module == "_codecs" and name == "encode":
        return _encoded
    if module == "argparse" and name == "Namespace":
        return _Arguments
    if module == "collections" and name == "OrderedDict":
        return collections.OrderedDict
    if module == "collections" and name == "defaultdict":
        return _default_dict
    if module == "torch._utils" and name in _TORCH:
        return getattr(torch._utils, name)
    if module == "torch" and name in ("Size", "device"):
        return getattr(torch, name)
    if module == "torch.nn.parameter" and name == "Parameter":
        return torch.nn.Parameter
    if module in ("torch", "torch.storage") and name == "UntypedStorage":
        return torch.UntypedStorage
    value = getattr(torch, name, None) if module == "torch" else None
    return value if isinstance(value, torch.dtype) else None


def _member(path: Path, *arguments: Any) -> Inert:
    """Return a value of an enumeration, which Python 3.11 writes as an attribute of its class."""
    owner, *names = arguments or (None,)
    if isinstance(owner, type) and issubclass(owner, Inert) and len(names) == 1:
        return owner(str(names[0]))
    raise UserError(
        f"{path}: names getattr, for something that is no setting; it may be made to run code and "
        "is not read"
    )


def _encoded(text: str, _: str = "latin1") -> bytes:
    """Return bytes, which old pickles have as text."""
    return text.encode("latin1")


def _default_dict(*_: Any) -> dict[Any, Any]:
    """Return an ordinary dictionary: the function that makes its values is not called."""
    return {}
