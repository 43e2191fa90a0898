"""`train.sparse_clip` from the command line to the norm that is logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, records

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1", "train.max_updates=1")


@pytest.mark.parametrize("ranks", [1, 2])
def test_experts_count_less_in_the_norm(lab: Lab, tmp_path: Path, ranks: int) -> None:
    norms = {}
    for choice in ("false", "true"):
        folder = tmp_path / choice
        clip = ("train.clip_norm=0.1", f"train.sparse_clip={choice}")
        layout = (f"train.expert_parallel={ranks}", f"run_dir={folder}")
        train(lab.moe, *SETTINGS, *clip, *layout, ranks=ranks)[0].check()
        norms[choice] = records(folder)[0]["grad_norm"]
    assert 0.1 < norms["true"] < 0.999 * norms["false"]


def test_it_requires_a_limit(lab: Lab, tmp_path: Path) -> None:
    wrong = ("train.sparse_clip=true", "train.clip_norm=0", f"run_dir={tmp_path / 'run'}")
    result = train(lab.moe, *SETTINGS, *wrong)[0]
    assert result.code == 2
    assert "sparse_clip: needs clip_norm above 0" in result.err
    assert not (tmp_path / "run").exists()
