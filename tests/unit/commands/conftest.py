"""One small text with a vocabulary, and an experiment whose data can be prepared."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.data.toy import write_toy
from tests.unit.runs.conftest import text, vocab

__all__ = ["experiment", "text", "vocab"]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment file in a folder with raw text in raw/; the data go to data/."""
    raw = tmp_path / "raw"
    write_toy(raw, 200, 20)
    splits = {
        name: {"source": str(raw / f"{name}.en"), "target": str(raw / f"{name}.de")}
        for name in ("train", "valid", "test")
    }
    content = {
        "name": "toy",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(tmp_path / "data"),
            "raw": splits,
            "vocab": {"size": 120},
        },
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
