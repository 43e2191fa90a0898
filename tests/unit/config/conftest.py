"""A small valid experiment, as a mapping and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.config.experiment import ExperimentConfig
from tests.unit.config.fixture_types import MakeConfig, WriteFile


@pytest.fixture
def minimal() -> dict[str, Any]:
    """Only what has no default."""
    return {
        "name": "small",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": "shards",
            "raw": {"valid": {"source": "valid.en", "target": "valid.de"}},
        },
    }


@pytest.fixture
def make(minimal: dict[str, Any]) -> MakeConfig:
    """Build the small experiment with some sections given."""

    def build(**sections: Any) -> ExperimentConfig:
        return ExperimentConfig.model_validate({**minimal, **sections})

    return build


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Write a file into the test's folder."""

    def to_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def experiment(write: WriteFile, minimal: dict[str, Any]) -> Path:
    """The small experiment as a file."""
    return write("small.yaml", yaml.safe_dump(minimal, sort_keys=False))
