"""Each start of a run is recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ds_seq.distributed import World
from ds_seq.names import STARTS_FILE
from ds_seq.training.provenance import describe_start, record_start


def test_each_start_is_a_line_with_command_host_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [*sys.orig_argv, "name=b\udcff"])  # bytes, not UTF-8
    first = record_start(tmp_path, World(size=2), 0, 40)
    record_start(tmp_path, World(), 30, 40)
    lines = [json.loads(line) for line in (tmp_path / STARTS_FILE).read_text().splitlines()]
    assert lines[0] == first and [line["update"] for line in lines] == [0, 30]
    assert lines[0]["versions"]["torch"] == torch.__version__ and lines[0]["processes"] == 2
    assert sys.orig_argv[0] in lines[0]["command"] and lines[0]["folder"] == str(Path.cwd())
    assert lines[0]["host"] in describe_start(first)
