"""Checkpoints of fairseq's branch `moe`, which two ranks have written, are read as one model.

They, and what is expected of them, were written by benchmarks/parity/fairseq_moe_side.py with the
code of that branch (ebea0072).
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_seq import cli
from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.experts import experts_section
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.errors import UserError
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.runs.open import load_run, open_run

Capture = pytest.CaptureFixture[str]
RECORDED = Path(__file__).parents[2] / "data" / "fairseq_moe.tar.xz"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(RECORDED) as archive:
        archive.extractall(tmp_path, **safely)
    return tmp_path


def run_import(folder: Path, file: str) -> int:
    words = ["--dict", str(folder / "dict.txt"), "--out", str(folder / "run")]
    return cli.main(["import", "fairseq", str(folder / file), *words])


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("top2_before", "checkpoint_best-shared.pt"),
        ("top1", "checkpoint_best-rank-1.pt"),
        ("replicated", "checkpoint_best.pt"),
    ],
)
def test_a_model_computes_what_fairseq_computed(recorded: Path, kind: str, file: str) -> None:
    assert run_import(recorded / kind, file) == 0
    model = load_run(recorded / kind / "run", "best", dtype=torch.float64).seq2seq
    pairs = torch.load(recorded / kind / "expected.pt", weights_only=True)
    for source, target, expected in pairs:
        with torch.no_grad():
            logits = model(inputs_of(source, target)).logits
        assert (logits - expected).abs().max() < 1e-5
    moe = open_run(recorded / kind / "run", "best").model_config.moe
    assert moe is not None and moe.eval_capacity_factor is None
    if kind == "top2_before":
        assert (moe.num_experts, moe.top_k, moe.normalization) == (4, 2, "before_dropping")


def test_a_lost_file_of_a_rank_is_named(recorded: Path, capsys: Capture) -> None:
    (recorded / "top1" / "checkpoint_best-rank-0.pt").unlink()
    assert run_import(recorded / "top1", "checkpoint_best-shared.pt") == 2
    assert (
        "checkpoint_best-rank-0.pt: missing; copy the files of all ranks" in capsys.readouterr().err
    )
    (recorded / "top1" / "checkpoint_best-shared.pt").unlink()
    assert run_import(recorded / "top1", "checkpoint_best-rank-1.pt") == 2
    assert "checkpoint_best-shared.pt: no such file" in capsys.readouterr().err


def test_arguments_become_options() -> None:
    values = {"moe_freq": 2, "encoder_layers": 4, "decoder_layers": 2, "moe_expert_count": 8}
    refusals = Refusals()
    found = experts_section(Given(values), refusals)
    assert found is not None and found["layers"] == {"encoder": [1, 3], "decoder": [1]}
    # a quarter of all tokens, which are half the even share of two choices of eight experts
    assert (found["eval_capacity_factor"], found["second_expert"]) == (1.0, "sampled")
    as_in_training = Given({**values, "moe_eval_capacity_token_fraction": -1.0})
    assert experts_section(as_in_training, refusals) == found
    refusals.raise_any("x")
    wrong = Given({**values, "moe_expert_count": 0, "moe_second_expert_policy": "al"})
    experts_section(wrong, refusals)
    with pytest.raises(
        UserError, match=r"(?s)--moe-expert-count 0: .*policy al: .*did you mean .all"
    ):
        refusals.raise_any("x")
