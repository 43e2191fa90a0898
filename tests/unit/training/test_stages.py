"""A stage ends when its metric no longer improves."""

from __future__ import annotations

import json
from typing import Any, cast

from ds_seq.data.mixing import Stage, Until
from ds_seq.data.stream import BatchStream
from ds_seq.training.stages import StageWatch
from ds_seq.training.validation import BestBy


class _Batches:
    """A stream that only knows its stages."""

    def __init__(self) -> None:
        self.stages = [
            Stage("one", {}, 1, Until(metric="bleu", validations=2)),
            Stage("two", {}, 1, Until(metric="loss", validations=1)),
            Stage("three", {}, 1),
        ]
        self.number, self.num_stages = 0, 3

    @property
    def stage(self) -> Stage:
        return self.stages[self.number]

    def next_stage(self) -> None:
        self.number += 1


def _watch(batches: Any) -> StageWatch:
    figures = {"bleu": BestBy("bleu", True), "loss": BestBy("loss", False)}
    return StageWatch(cast(BatchStream, batches), figures)


def test_stages_end_by_their_metrics_also_after_a_resume() -> None:
    batches = _Batches()
    watch = _watch(batches)
    stages = []
    for bleu, loss in [(1, 9), (3, 9), (2, 9), (4, 9), (4, 9), (3, 5), (9, 4), (9, 5), (0, 9)]:
        state = json.loads(json.dumps(watch.state_dict()))
        watch = _watch(batches)
        watch.load_state_dict(state)
        lines = watch.observe({"bleu": bleu, "loss": loss})
        stages.append(watch.name)
        assert bool(lines) == (len(stages) in (6, 8))
    assert stages == ["one"] * 5 + ["two"] * 2 + ["three"] * 2


def test_a_stage_that_ended_otherwise_leaves_no_best() -> None:
    batches = _Batches()
    watch = _watch(batches)
    watch.observe({"bleu": 5, "loss": 1})
    batches.number = 1
    assert watch.observe({"bleu": 0, "loss": 8}) == []
    assert batches.number == 1
    watch.observe({"bleu": 0, "loss": 8})
    assert batches.number == 2
