"""The Python code in documents runs, with a trained model and an experiment under its names."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq.config.load import dump, load_experiment
from tests.documents import Block, blocks
from tests.system.forked import script
from tests.system.runs import NO_VALIDATION, TINY, Lab


@pytest.mark.parametrize("block", list(blocks("python")), ids=lambda block: block.name)
def test_a_documented_script_runs(block: Block, lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    if block.not_run is not None:
        pytest.skip(block.not_run)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "NAME").symlink_to(dense_run)
    config = load_experiment(lab.dense, [*TINY, *NO_VALIDATION, "run_dir=null"])
    (tmp_path / "my.yaml").write_text(dump(config), encoding="utf-8")
    script(block.text, tmp_path).check()
