"""`ds-seq import huggingface` answers what it cannot import with one line and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ds_seq import cli
from ds_seq.errors import EXIT_USER_ERROR

FOLDER = Path(__file__).parents[2] / "data" / "huggingface" / "bart"
KEY = "model.encoder.layers.0.fc1.bias"


def settings(**changes: Any) -> Callable[[Path], None]:
    """A folder whose config.json says something else."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def renamed(folder: Path) -> None:
    """A folder with one tensor under another name, and one that nobody knows."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["surplus"] = tensors.pop(KEY)
    save_file(tensors, path, {"format": "pt"})


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no path": (shutil.rmtree, "bart: no such folder"),
    "other architecture": (settings(model_type="led"), "model_type 'led' cannot be imported"),
    "remote code": (settings(auto_map={"AutoModel": "a.B"}), "code of its own (auto_map), which"),
    "missing and leftover": (renamed, f"lacks {KEY}; has no place for surplus"),
    "vocabulary of another size": (settings(vocab_size=299), "but config.json says vocab_size 299"),
}


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_an_import_that_is_impossible_is_one_line(
    change: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "bart"
    shutil.copytree(FOLDER, folder)
    change(folder)
    words = ["--source-lang", "en", "--target-lang", "de", "--no-compare"]
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["import", "huggingface", str(folder), *out, *words]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("ds-seq: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()
