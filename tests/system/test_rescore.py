"""`ds-seq rescore` by several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import command
from tests.unit.commands.test_rescore import write_lab


@pytest.mark.timeout(60)
def test_any_number_of_processes_scores_alike(tmp_path: Path) -> None:
    write_lab(tmp_path)
    outputs = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks)
        options = ("--output", out, "--max-sentences", "2", "--format", "jsonl")
        files = ("--source", tmp_path / "src", "--hypotheses", tmp_path / "tgt")
        first, *others = command("rescore", tmp_path / "moe", *files, *options, ranks=ranks)
        assert "scored 12 translations" in first.check().err
        assert not any(other.check().err for other in others)
        outputs.append(out.read_text())
    assert outputs[0] == outputs[1] and outputs[0].count("\n") == 12
