"""The files between a sentence pair and its loss, listed by `tests/trace_files.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.harness import run_distributed
from tests.trace_files import trace

# Files that ran; lower these when the way gets shorter, and think twice before raising them.
MOST = {"dense": 21, "experts": 31}


@pytest.mark.parametrize("kind", MOST)
def test_files_from_a_pair_to_its_loss(kind: str, tmp_path: Path) -> None:
    (files,) = run_distributed(trace, 1, kind, tmp_path)
    assert len(files) <= MOST[kind], "\n".join(files)
    # the list is of the way, and not a list of a few files that happened to be seen
    assert {"training/run.py", "training/trainer.py", "criterions/cross_entropy.py"} <= set(files)
    folders = {name.split("/")[0] for name in files}
    assert {"data", "models", "modules", "tasks"} <= folders
    assert ("moe" in folders) == (kind == "experts")
