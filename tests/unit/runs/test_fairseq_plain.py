"""Checkpoints of others are read as data: nothing that a file names is imported or called."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import sys
import types
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.arguments import find_arguments
from ds_seq.runs.formats.fairseq.plain import Inert, read_plain


class Call:
    """Calls a function when it is unpickled by Python's own reader."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_tensors_and_containers_are_read(tmp_path: Path) -> None:
    content = {
        "model": collections.OrderedDict(a=torch.arange(6).view(2, 3)[:, 1:], b=torch.ones(2)),
        "args": argparse.Namespace(arch="transformer", lr=[0.1], none=None),
        "more": (1, 2.5, "text", b"bytes", {3}, torch.float16, torch.Size([2])),
    }
    content["model"]["c"] = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))
    for is_zip in (True, False):
        path = tmp_path / f"{is_zip}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)
        read = read_plain(path)
        assert torch.equal(read["model"]["a"], content["model"]["a"])
        assert read["model"]["c"].dtype == torch.float16
        assert vars(read["args"]) == vars(content["args"])
        assert read["more"] == content["more"]


@pytest.mark.parametrize(
    "function",
    [os.system, eval, getattr, pickle.loads, torch.load, io.open,
     torch.jit.load, torch.hub.load],
)  # fmt: skip
def test_a_file_that_would_run_code_is_refused_by_name(function: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "bad.pt"
    for is_zip in (True, False):
        torch.save(
            {"model": {}, "x": Call(function, f"touch {trap}")},
            path,
            _use_new_zipfile_serialization=is_zip,
        )
        with pytest.raises(UserError, match=rf"bad\.pt: names [\w.]*{function.__name__}"):
            read_plain(path)
    assert not trap.exists()


def test_classes_of_other_packages_are_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("fairseq_like")
    ran: list[str] = []

    class Trap:
        def __init__(self) -> None:
            self.value = 3

        def __setstate__(self, state: Any) -> None:
            ran.append("state")

    def call(*_: Any) -> None:
        ran.append("call")

    for name, item in (("Trap", Trap), ("call", call)):
        item.__module__, item.__qualname__ = "fairseq_like", name
        setattr(module, name, item)
    monkeypatch.setitem(sys.modules, "fairseq_like", module)
    path = tmp_path / "x.pt"
    torch.save({"trap": Trap(), "call": Call(call, 1)}, path)
    read = read_plain(path)
    assert not ran
    assert isinstance(read["trap"], Inert) and read["trap"].value == 3
    assert type(read["trap"]).origin == "fairseq_like.Trap"


class Color(Enum):
    red = "red"


def test_settings_become_plain_values(tmp_path: Path) -> None:
    arguments = argparse.Namespace(arch="transformer", clip_norm=0.0, color=Color.red)
    path = tmp_path / "x.pt"
    torch.save({"model": {}, "args": arguments}, path)
    assert find_arguments(read_plain(path), path) == {
        "arch": "transformer", "clip_norm": 0.0, "color": "red",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no checkpoint"),
        (b"not a pickle at all", "is damaged or no checkpoint"),
        (pickle.dumps({"model": 1}), "is damaged or no checkpoint"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_plain(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_without_its_end_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.ones(20_000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"x\.pt: is damaged"):
        read_plain(path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt: no such file"):
        read_plain(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder; give a checkpoint"):
        read_plain(tmp_path)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/constants.pkl", b"")
    with pytest.raises(UserError, match="is a TorchScript program"):
        read_plain(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(UserError, match="has no weights under the key model"):
        find_arguments(read_plain(path), path)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="says neither in args nor in cfg"):
        find_arguments(read_plain(path), path)


class Attribute:
    def __reduce__(self) -> tuple[Any, tuple[Any, str]]:
        return getattr, (int, "__class__")


def test_attributes_are_those_of_plain_classes_only(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": Attribute()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="names getattr, for something that is no setting"):
        read_plain(tmp_path / "x.pt")
