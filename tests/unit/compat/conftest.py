"""Fixtures of the tests of fairseq's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.compat.one_side import write_one_side


@pytest.fixture(scope="session")
def one_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text of one side; see `tests.unit.compat.one_side`."""
    folder = tmp_path_factory.mktemp("text")
    write_one_side(folder)
    return folder
