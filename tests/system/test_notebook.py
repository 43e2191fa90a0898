"""The notebook is small and clean as committed, and runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.toy import write_toy
from tests.system.commands import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "quick_start_to_moe_student.ipynb"
CONTENT: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]
PARAMETERS = "parameters"


def source(cell: dict[str, Any]) -> str:
    text: str | list[str] = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def test_it_is_committed_as_it_ran() -> None:
    assert NOTEBOOK.stat().st_size < 200_000
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    text = json.dumps([o for o in outputs if o["output_type"] == "stream"])
    assert not re.search(r"/(home|root|tmp|usr|work)/", text)


def test_its_parameters_are_in_one_cell() -> None:
    (cell,) = (c for c in CODE if PARAMETERS in c["metadata"].get("tags", []))
    names = [node.targets[0].id for node in ast.parse(source(cell)).body]  # type: ignore[attr-defined]
    assert names == ["UPDATES", "STUDENT_UPDATES", "SETTINGS", "WORK", "TEXT"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With generated text and few updates; only that nothing raises is asserted."""
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebook]'")
    client = pytest.importorskip("nbclient", reason="pip install -e '.[notebook]'")
    write_toy(tmp_path / "text", train=2000, held_out=60)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (c for c in notebook.cells if PARAMETERS in c["metadata"].get("tags", []))
    cell["source"] = (
        "UPDATES = 12\nSTUDENT_UPDATES = 6\n"
        'SETTINGS = ["data.vocab.size=250", "train.max_tokens=500"]\n'
        f"WORK = {str(tmp_path)!r}\nTEXT = {str(tmp_path / 'text')!r}"
    )
    for each in notebook.cells:
        if each["cell_type"] == "code":
            each["outputs"] = []
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client.NotebookClient(notebook, kernel_name="python3", timeout=900, resources=folder).execute()
    assert (tmp_path / "runs" / "notebook_student" / "checkpoints").is_dir()
