"""The names of `import ds_seq`: complete, typed, and imported when they are used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ds_seq
from tests.fresh import words_printed_by
from tests.unit.test_layering import PACKAGE

CONSUMER = Path(__file__).parent / "consumer.py"
HEAVY = {"torch", "deepspeed", "numpy", "sentencepiece", "sacrebleu", "fastapi"}


def typed_names() -> dict[str, str]:
    """Names and modules that a type checker sees."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ds_seq.")
        for alias in node.names
        if alias.asname == alias.name
    }


def test_a_type_checker_sees_what_python_sees() -> None:
    typed = typed_names()
    assert {*typed, "__version__"} == set(ds_seq.__all__)
    for name, module in typed.items():
        assert vars(sys.modules.get(module) or __import__(module, fromlist=[name]))[name] is (
            vars(ds_seq)["__getattr__"](name)
        )


@pytest.mark.parametrize("name", [name for name in ds_seq.__all__ if name[0] != "_"])
def test_each_name_says_what_it_is(name: str) -> None:
    found = vars(ds_seq)["__getattr__"](name)
    text = inspect.getdoc(found) or ""
    assert len(text) > 20
    if inspect.isfunction(found):
        signature = inspect.signature(found)
        assert "Raises:" in text and signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert f"{parameter.name}: " in text
            assert parameter.annotation is not inspect.Parameter.empty
            assert parameter.kind is not inspect.Parameter.VAR_KEYWORD


def test_looking_at_runs_and_experiments_loads_no_torch() -> None:
    used = "ds_seq.list_runs, ds_seq.read_curves, ds_seq.check, ds_seq.resolve, ds_seq.UserError"
    loaded = words_printed_by(f"import ds_seq\n{used}\nimport sys\nprint(*sys.modules)")
    assert "ds_seq.api.folders" in loaded and not {*loaded} & HEAVY


@pytest.mark.slow  # without mypy's cache, it reads all of torch's types
def test_a_strict_type_checker_accepts_a_user(tmp_path: Path) -> None:
    """The part of the package that a user sees; types inside are checked with the package."""
    pytest.importorskip("mypy")
    assert (PACKAGE / "py.typed").exists()
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", CONSUMER]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
