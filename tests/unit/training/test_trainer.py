"""The order of events of a training run, with a stand-in for the engine."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import pytest
import torch

from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.moe.experts import Experts
from ds_seq.moe.output import RoutingStats
from ds_seq.training.engine import StepResult
from ds_seq.training.validation import BestBy
from tests.unit.moe.made import make_router, plain_layer
from tests.unit.training.fakes import Scene, make_stats

VALIDATING: dict[str, Any] = {"validate_every": 2, "save_every": None}


def test_the_loss_is_divided_by_the_tokens_of_the_whole_update() -> None:
    scene = Scene(tokens=[2, 6, 0, 4], accumulate=2, max_updates=2)
    assert scene.trainer.fit() == "max_updates"
    # DeepSpeed divides by the accumulation; the sum over an update must be the mean over tokens
    first, second = scene.engine.losses[:2], scene.engine.losses[2:]
    assert first == pytest.approx([2 * 2 / 8, 6 * 2 / 8])
    assert second == pytest.approx([0.0, 4 * 2 / 4])


def test_logs_means_since_the_last_entry() -> None:
    scene = Scene(tokens=[2, 6], max_updates=4, log_every=2)
    scene.trainer.fit()
    (update, figures), (later, _) = scene.of_kind("train")
    assert (update, later) == (2, 4)
    assert figures["tokens"] == 8 and figures["loss"] == pytest.approx(1.0)
    assert figures["lr"] == 0.5 and figures["grad_norm"] == 2.0
    assert figures["tokens_per_second"] > 0


def test_the_tokens_of_a_run_are_counted_beyond_a_resume() -> None:
    first = Scene(tokens=[2, 6], max_updates=4, log_every=2, save_every=2)
    first.trainer.fit()
    assert [figures["total_tokens"] for _, figures in first.of_kind("train")] == [8.0, 16.0]
    second = Scene(tokens=[2, 6], max_updates=6, log_every=2)
    second.trainer.load_state_dict(first.progress)
    second.trainer.fit()
    assert [figures["total_tokens"] for _, figures in second.of_kind("train")] == [24.0]
    del first.progress["tokens"]  # as older checkpoints are
    third = Scene(tokens=[2, 6], max_updates=6, log_every=2)
    third.trainer.load_state_dict(first.progress)
    third.trainer.fit()
    assert all("total_tokens" not in figures for _, figures in third.of_kind("train"))


def test_validates_and_saves_when_due_and_at_the_end() -> None:
    scene = Scene(max_updates=5, **VALIDATING)
    scene.trainer.fit()
    assert [update for update, _ in scene.of_kind("valid")] == [2, 4, 5]
    assert scene.of_kind("save") == [(2, 1.0), (4, 2.0), (5, 3.0)]


def test_a_last_update_that_was_validated_is_not_validated_again() -> None:
    scene = Scene(max_updates=4, **VALIDATING)
    scene.trainer.fit()
    assert [update for update, _ in scene.of_kind("valid")] == [2, 4]
    assert [update for update, _ in scene.of_kind("save")] == [2, 4]


def test_the_first_validation_says_the_signatures() -> None:
    scene = Scene(max_updates=6, sanity_validation_batches=1, **VALIDATING)
    scene.valid_figures = {
        "chrf": 3.0,
        "bleu_signature": "nrefs:1|a",
        "chrf_signature": "nrefs:1|b",
    }
    scene.trainer.fit()
    messages = [text for (text,) in scene.of_kind("said") if "signature" in text]
    assert messages == [
        "valid bleu is of detokenized text, signature nrefs:1|a",
        "valid chrf is of detokenized text, signature nrefs:1|b",
    ]
    first = scene.events.index(("said", messages[0]))
    assert [event[0] for event in scene.events[:first]].count("batch") == 2


def test_a_validation_shows_all_metrics_there_are() -> None:
    scene = Scene(max_updates=1, validate_every=1, save_every=None, best=BestBy("ter", False))
    scene.valid_figures = {"ter": 40.0, "ter_signature": "", "nll": 1.0, "samples": "text"}
    scene.trainer.fit()
    messages = [text for (text,) in scene.of_kind("said")]
    assert messages == ["update 1 | valid loss 1.00 | valid ter 40.00 | best"]
    assert scene.of_kind("save") == [(1, 40.0)]


@pytest.mark.parametrize(("best", "kept"), [("bleu", 2.0), ("loss", None)])
def test_a_best_score_by_another_figure_is_forgotten(best: str, kept: float | None) -> None:
    first = Scene(max_updates=2, validate_every=1, save_every=None)
    first.trainer.fit()
    second = Scene(max_updates=2, best=BestBy(best, True))
    second.trainer.load_state_dict(first.progress)
    assert second.trainer.validations.best_score == kept
    del first.progress["best_by"]  # as older checkpoints are
    second.trainer.load_state_dict(first.progress)
    assert second.trainer.validations.best_score == 2.0


def test_saves_between_validations() -> None:
    scene = Scene(max_updates=6, validate_every=4, save_every=3)
    scene.trainer.fit()
    assert dict(scene.of_kind("save")) == {3: None, 4: 1.0, 6: 2.0}


def test_without_validation_there_is_no_sanity_check() -> None:
    scene = Scene(max_updates=3, sanity_validation_batches=2)
    scene.trainer.fit()
    assert not scene.of_kind("rehearsal") and not scene.of_kind("valid")
    assert scene.of_kind("save") == [(3, None)]


def test_the_sanity_check_comes_first_and_leaves_no_trace() -> None:
    scene = Scene(max_updates=2, sanity_validation_batches=3, **VALIDATING)
    scene.trainer.fit()
    assert scene.events[0] == ("rehearsal", 3)
    assert len(scene.of_kind("rehearsal")) == 1
    assert scene.of_kind("save") == [(2, 1.0)]


@pytest.mark.parametrize(
    ("best", "scores"),
    [
        (BestBy("bleu", True), [1.0, 5.0, 4.0, 5.0, 9.0]),
        (BestBy("loss", False), [5.0, 2.0, 3.0, 2.0, 1.0]),
    ],
)
def test_patience_counts_from_the_best(best: BestBy, scores: list[float]) -> None:
    settings: dict[str, Any] = {"validate_every": 1, "save_every": None, "patience": 2}
    scene = Scene(max_updates=50, scores=scores, best=best, **settings)
    assert scene.trainer.fit() == "patience"
    assert scene.trainer.update == 4
    assert scene.trainer.validations.best_score == scores[1]


def test_the_end_of_the_data_ends_the_run_and_an_incomplete_update_is_not_made() -> None:
    scene = Scene(tokens=[2, 2, 2, 2, 2], epochs=1, accumulate=2, max_updates=50)
    assert scene.trainer.fit() == "max_epochs"
    assert scene.trainer.update == 2
    assert scene.of_kind("save") == [(2, None)]


def test_max_hours_ends_the_run_after_an_update() -> None:
    scene = Scene(max_updates=50, max_hours=1e-9)
    assert scene.trainer.fit() == "max_hours"
    assert scene.of_kind("save") == [(1, None)]


def test_max_hours_are_those_of_one_job() -> None:
    scene = Scene(max_updates=3, max_hours=1.0)
    scene.trainer.fit()
    resumed = Scene(max_updates=6, max_hours=1.0)
    resumed.trainer.load_state_dict({**scene.progress, "seconds": 7200.0})
    assert resumed.trainer.fit() == "max_updates"
    assert resumed.progress["seconds"] > 7200.0


def test_a_validation_shows_each_file() -> None:
    scene = Scene(max_updates=1, validate_every=1, save_every=None)
    scene.valid_figures = {"bleu_signature": "", "bleu/a.en": 4.0, "bleu/b.en": 8.0, "moe/x": 1.0}
    scene.trainer.fit()
    messages = [text for (text,) in scene.of_kind("said")]
    assert messages == [
        "update 1 | valid loss 1.00 | valid bleu 1.00 | best",
        "update 1 | valid a.en | bleu 4.00",
        "update 1 | valid b.en | bleu 8.00",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_without_a_validation(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    scene = Scene(max_updates=50, validate_every=20, save_every=None)
    scene.engine.on_step = lambda update: os.kill(os.getpid(), number) if update == 2 else None
    assert scene.trainer.fit() == "signal"
    assert scene.trainer.update == 3, "it ends with the update that follows"
    assert scene.of_kind("save") == [(3, None)] and not scene.of_kind("valid")
    assert signal.getsignal(number) is before


def test_skipped_updates_are_counted() -> None:
    scene = Scene(max_updates=3, log_every=1)
    scene.engine.results = [StepResult(applied, 1.0, 2.0) for applied in (False, True, False)]
    scene.trainer.fit()
    assert [figures["skipped_updates"] for _, figures in scene.of_kind("train")] == [1, 1, 2]


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing() -> None:
    scene = Scene(max_updates=50, log_every=2)
    scene.loss_per_token = float("nan")
    with pytest.raises(
        UserError, match=r"training loss is nan at update 1; nothing is saved.*optimizer\.lr"
    ):
        scene.trainer.fit()
    assert not scene.of_kind("save")
    assert scene.events[-1] == ("closed",)


def test_the_loss_of_a_skipped_update_may_be_no_number() -> None:
    scene = Scene(max_updates=4, log_every=1)
    scene.engine.results = [StepResult(applied, 1.0, 1.0) for applied in (True, False, True, True)]
    scene.engine.on_step = lambda update: setattr(
        scene, "loss_per_token", float("nan") if update == 1 else 1.0
    )  # of the next update
    assert scene.trainer.fit() == "max_updates"
    losses = [figures["loss"] for _, figures in scene.of_kind("train")]
    assert [math.isfinite(loss) for loss in losses] == [True, False, True, True]


def test_a_gradient_that_is_no_number_ends_the_run_and_saves_nothing() -> None:
    scene = Scene(max_updates=50, log_every=10, save_every=2)
    scene.engine.results = [StepResult(True, norm, 1.0) for norm in (1.0, float("inf"), 1.0)]
    with pytest.raises(UserError, match=r"gradient norm is inf at update 2.*optimizer\.lr"):
        scene.trainer.fit()
    assert not scene.of_kind("save")


def test_running_out_of_memory_says_what_to_lower() -> None:
    def use_too_much(update: int) -> None:
        if update == 3:
            torch.empty(1 << 50)  # the allocator's own error

    scene = Scene(tokens=[2, 6], max_updates=4, accumulate=2, max_tokens=512)
    scene.engine.on_step = use_too_much
    with pytest.raises(UserError) as caught:
        scene.trainer.fit()
    message = str(caught.value)
    assert message.startswith("out of memory in update 3 (1 sentences of 6 target tokens")
    assert "lower train.max_tokens, which is 512, and raise train.accumulate" in message


def test_another_error_stays_what_it_is() -> None:
    scene = Scene()
    scene.engine.on_step = lambda update: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        scene.trainer.fit()


def test_a_validation_without_memory_names_its_own_options() -> None:
    scene = Scene(**VALIDATING)

    def validate(max_batches: int | None = None) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    scene.trainer.validations.validator = validate  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"out of memory in a validation.*generation\.beam"):
        scene.trainer.fit()


@pytest.mark.parametrize("settings", [{"save_every": 2}, VALIDATING])
def test_weights_that_are_no_numbers_are_not_saved(settings: dict[str, Any]) -> None:
    module = torch.nn.Linear(2, 1)  # the loss of the scene hides them, as an idle expert does
    scene = Scene(max_updates=50, module=module, **settings)

    def spoil(update: int) -> None:
        if update == 4:
            module.weight.data[0, 1] = float("inf")

    scene.engine.on_step = spoil
    with pytest.raises(UserError, match=r"NaN in the weights weight at update 4; the last ch"):
        scene.trainer.fit()
    assert [update for update, _ in scene.of_kind("save")] == [2]


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        scene = Scene(max_updates=3)
        scene.engine.on_step = lambda update: os.kill(os.getpid(), signal.SIGHUP)
        assert scene.trainer.fit() == "max_updates"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_validation_loss_that_is_no_number_is_no_checkpoint() -> None:
    scene = Scene(max_updates=50, scores=[1.0, float("inf")], **VALIDATING)
    with pytest.raises(UserError, match="validation loss is inf at update 4"):
        scene.trainer.fit()
    assert scene.of_kind("save") == [(2, 1.0)]


def test_a_resumed_run_continues_where_the_first_ended() -> None:
    whole = Scene(tokens=[1, 2, 3, 4, 5, 6], max_updates=6, **VALIDATING)
    whole.trainer.fit()
    first = Scene(tokens=[1, 2, 3, 4, 5, 6], max_updates=4, **VALIDATING)
    first.trainer.fit()
    second = Scene(tokens=[1, 2, 3, 4, 5, 6], max_updates=6, scores=[3.0], **VALIDATING)
    second.trainer.load_state_dict(first.progress)
    second.trainer.fit()

    # losses, and random numbers as dropout draws them
    assert first.engine.losses + second.engine.losses == whole.engine.losses
    assert first.engine.draws + second.engine.draws == whole.engine.draws
    assert second.of_kind("save") == [(6, 3.0)]
    assert not second.of_kind("rehearsal")
    assert second.trainer.validations.best_score == 3.0
    assert second.progress["seconds"] >= first.progress["seconds"]


def test_every_update_and_every_seed_draws_other_dropout() -> None:
    draws = []
    for seed in (1, 2):
        scene = Scene(max_updates=3, seed=seed)
        scene.trainer.fit()
        draws += scene.engine.draws
    assert len(set(draws)) == 6


def collapse(scene: Scene) -> list[str]:
    """Train with a layer in which one expert gets no tokens; return the reports about it."""
    scene.engine.stats = lambda batch: [make_stats([1, 1]), make_stats([2, 0], router_z=0.5)]
    scene.trainer.fit()
    return [text for (text,) in scene.of_kind("said") if "collapses" in text]


def test_a_collapsed_layer_is_reported_in_the_log() -> None:
    scene = Scene(epochs=2000, max_updates=800, log_every=50)
    (line,) = collapse(scene)
    assert line.startswith("update 500 | warning: layer 1 collapses: expert 1 got less than 1%")
    _, figures = scene.of_kind("train")[-1]
    assert figures["moe/layer1/router_z"] == pytest.approx(0.5)


def test_the_watch_over_experts_survives_a_resume() -> None:
    first = Scene(epochs=2000, max_updates=300, log_every=50)
    assert not collapse(first)
    second = Scene(epochs=2000, max_updates=600, log_every=50)
    second.trainer.load_state_dict(first.progress)
    (line,) = collapse(second)
    assert line.startswith("update 500 | ")
    older = {key: value for key, value in first.progress.items() if key != "moe_watch"}
    third = Scene(epochs=2000, max_updates=301)
    third.trainer.load_state_dict(older)
    assert third.trainer.fit() == "max_updates"


def test_each_validation_has_a_map_of_the_load() -> None:
    scene = Scene(max_updates=4, **VALIDATING)
    scene.valid_figures = {"moe/layer0/load": [0.25, 0.75], "moe/layer0/dropped": 0.0}
    scene.trainer.fit()
    pictures = scene.of_kind("picture")
    assert [(tag, update) for tag, update, _ in pictures] == [
        ("valid/moe/load", 2),
        ("valid/moe/load", 4),
    ]
    assert [list(row) for row in pictures[0][2].shares] == [[0.5, 1.5]]


def test_biases_of_sigmoid_routers_follow_the_load_of_whole_applied_updates() -> None:
    gate = make_router("sigmoid", 1, 3, 4)
    layer = plain_layer(gate, Experts(4, 4, 3, 0, "relu", 0.0, 1))
    scene = Scene(tokens=[1, 2, 3, 4, 1, 2], accumulate=2, max_updates=3, module=layer)
    scene.engine.results = [StepResult(applied, 1.0, 1.0) for applied in (True, False, True)]
    # No micro-batch alone would move the biases as both do; and the skipped update is different.
    loads = {1: [4.0, 0.0, 5.0], 2: [0.0, 9.0, 2.0], 3: [0.0, 0.0, 90.0], 4: [90.0, 0.0, 0.0]}
    seen: list[list[int]] = []

    def stats(batch: Batch) -> list[RoutingStats]:
        assert layer.training
        seen.append(gate.bias_steps.tolist())
        return [make_stats(loads[batch.num_tokens])]

    scene.engine.stats = stats
    scene.trainer.fit()
    step = [1, -1, -1]
    assert seen == [[0, 0, 0], [0, 0, 0], step, step, step, step]
    assert torch.equal(gate.bias_steps, 2 * torch.tensor(step))


def test_a_criterion_is_notified_of_each_update_after_its_batches() -> None:
    scene = Scene([3, 4], accumulate=2, max_updates=2)
    scene.engine.results = [StepResult(True, 1.0, 1.0), StepResult(False, math.inf, 1.0)]
    scene.trainer.fit()
    events = [event for event in scene.events if event[0] in ("batch", "end_update")]
    batches = [("batch", 3), ("batch", 4)]
    assert events == [*batches, ("end_update", True), *batches, ("end_update", False)]


def test_what_a_criterion_remembers_is_saved() -> None:
    scene = Scene(max_updates=4, save_every=1000)
    scene.trainer.fit()
    assert scene.criterion_state["hooks"].item() == 4
