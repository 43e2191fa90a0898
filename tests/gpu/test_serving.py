"""A server on a GPU: the translations of `ds-seq generate` there; run with ``pytest -m gpu``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds_seq.commands import generate
from ds_seq.serving.batcher import Batcher
from ds_seq.serving.explaining import explanation_question
from ds_seq.serving.models import Question
from ds_seq.serving.requests import ExplanationRequest, TranslationRequest
from tests.unit.serving.conftest import RUNS, served_model

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
TEXT = RUNS.parent / "text" / "test.en"


def test_a_server_on_a_gpu_answers_what_generate_writes(tmp_path: Path) -> None:
    options = ["--format", "jsonl", "--n-best", "2", "--device", DEVICE, "--dtype", "fp32"]
    files = ["--input", str(TEXT), "--output", str(tmp_path / "out")]
    assert generate.main([str(RUNS / "moe"), *files, *options]) == 0
    written = [json.loads(line) for line in (tmp_path / "out").read_text("utf-8").splitlines()]
    model = served_model("moe", RUNS / "moe", device=torch.device(DEVICE))
    batcher = Batcher(2, 0.01, lambda *facts: None)
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    asked = model.ask(TranslationRequest(text=lines, n_best=2, align=True))
    answers = [batcher.submit(*each) for each in asked if isinstance(each, Question)]
    for answer, expected in zip(answers, written, strict=True):
        found = answer.result(60).hypotheses
        assert [each.text for each in found] == [each["text"] for each in expected["hypotheses"]]
        assert [each.score for each in found] == pytest.approx(
            [each["score"] for each in expected["hypotheses"]], abs=1e-4
        )
    looked = explanation_question(model, ExplanationRequest(text=lines[0]))
    explanation = batcher.submit(*looked).result(60)
    assert explanation.text == written[0]["hypotheses"][0]["text"]
    assert all(layer.visits for layer in explanation.experts) and explanation.attention.cross
    batcher.close()
