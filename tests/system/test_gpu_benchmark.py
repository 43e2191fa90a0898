"""The benchmark for GPUs runs at toy sizes on a CPU, so that it works the day a GPU is at hand."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.harness import run_distributed
from tests.system.commands import REPOSITORY, run

LIMIT = 250.0  # seconds; 20 are enough on a machine that does nothing else
pytestmark = pytest.mark.timeout(LIMIT + 20)

SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
SETTINGS = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
# `compiled` is left out: a compiler takes longer than all others together.
SECTIONS = {
    "machine": {"torch", "matmul_bf16_tflops", "copy_tb_s", "linear_up_tflops"},
    "train_dense": {"rows", "waits_per_step", "profile", "overlap_comm", "check_grad_overflow"},
    "corners": {"dense bf16 usual", "checkpointing fp32 one token", "failures"},
    "attention": {"masked/default", "causal/math", "plain/cudnn"},
    "generate": {"bf16/4", "fp32/8", "waits_per_step", "launches_per_step", "profile"},
    "train_moe_small": {"rows", "waits_per_step", "profile"},
    "moe_layer": {
        "64/dense bf16",
        "96/moe x4 fp16 dropless (loop)",
        "moe x8 bf16 dropless profile",
    },
    "loss": {"bf16/ours ce", "fp16/ours ce + JS", "bf16/torch cross_entropy"},
    "train_dense_checked": {"rows", "waits_per_step", "overlap_comm"},
}
OTHER_SETTINGS = {  # of the trainings above
    "train_dense_cudnn": {"rows"},
    "train_moe_large": {"rows", "profile"},
    "train_dense_plain": {"rows", "profile"},
    "train_dense_fp16": {"rows", "profile"},
    "train_moe_fp16": {"rows", "profile"},
    "train_dense_zero0": {"rows", "profile"},
}


def figures_of(out: Path) -> dict[str, Any]:
    """What a run has written."""
    found: dict[str, Any] = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    return found


def run_here(out: Path, sections: list[str]) -> int:
    """Run sections in this process, which is not used afterwards."""
    sys.path.insert(0, str(SCRIPT.parent))
    gpu = importlib.import_module("gpu")
    options = ["--tiny", "--one-process", "--out", str(out), "--only", ",".join(sections)]
    code: int = gpu.main(options)
    return code


@pytest.fixture(scope="module")
def figures_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], dict[str, Any]]:
    """Whether of the slow sections -> their figures; run at the first request."""

    @cache
    def run_once(is_slow: bool) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("bench")
        sections = list(OTHER_SETTINGS if is_slow else SECTIONS)
        assert run_distributed(run_here, 1, out, sections, timeout=LIMIT) == [0]
        return figures_of(out)

    return run_once


@pytest.fixture(scope="module")
def figures(figures_by: Callable[[bool], dict[str, Any]]) -> dict[str, Any]:
    """Those of the sections that are not slow."""
    return figures_by(False)


def test_every_section_but_the_compiled_one_is_run(figures: dict[str, Any]) -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    tables = (node.value for node in tree.body if isinstance(node, ast.Assign))
    (table,) = (node for node in tables if isinstance(node, ast.Dict))
    names = [ast.literal_eval(key) for key in table.keys if key is not None]
    assert [name for name in names if name != "compiled"] == [*SECTIONS, *OTHER_SETTINGS]
    assert list(figures) == list(SECTIONS)


@pytest.mark.parametrize(
    "name",
    [*SECTIONS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_SETTINGS)],
)
def test_section_gives_its_figures(figures_by: Callable[[bool], dict[str, Any]], name: str) -> None:
    found = figures_by(name in OTHER_SETTINGS)[name]
    assert "error" not in found
    assert found["device"] == "CPU" and found["seconds"] >= 0
    assert {**SECTIONS, **OTHER_SETTINGS}[name] <= set(found)
    for row in found.get("rows", []):
        assert row["ms_per_step"] > 0 and row["target_tokens_per_s"] > 0
        assert 0 < row["loss"] < 10


def test_no_corner_fails(figures: dict[str, Any]) -> None:
    assert figures["corners"]["failures"] == {}


def test_training_takes_the_settings_that_users_get(figures: dict[str, Any]) -> None:
    users, checked = figures["train_dense"], figures["train_dense_checked"]
    assert users["overlap_comm"] is False and users["check_grad_overflow"] is False
    assert checked["overlap_comm"] is True and checked["check_grad_overflow"] is True


@pytest.mark.slow
def test_sections_run_in_separate_processes_at_the_requested_size(
    tmp_path: Path,
) -> None:
    options = ["--tiny", "--only", "moe_layer", "--tokens", "128", "--budget", str(LIMIT)]
    run([sys.executable, SCRIPT, "--out", tmp_path, *options], LIMIT, SETTINGS).check()
    found = figures_of(tmp_path)["moe_layer"]
    assert "128/dense bf16" in found
    assert not any(key.startswith(("64/", "96/")) for key in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.log"]
