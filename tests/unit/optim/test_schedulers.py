"""Learning-rate schedules, as properties of the curves."""

from __future__ import annotations

import math

import pytest

from ds_seq.config.base import ExternalConfig
from ds_seq.config.optim import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    PolynomialConfig,
    WarmupStableDecayConfig,
)
from ds_seq.errors import UserError
from ds_seq.optim import Schedule, build_scheduler, schedulers
from ds_seq.plugins import trusting

LR, WARMUP, TOTAL = 0.8, 10, 110
ALL = {
    "inverse_sqrt": InverseSqrtConfig(warmup_updates=WARMUP),
    "cosine": CosineConfig(warmup_updates=WARMUP, total_updates=TOTAL),
    "linear": LinearConfig(warmup_updates=WARMUP, total_updates=TOTAL),
    "polynomial": PolynomialConfig(warmup_updates=WARMUP, total_updates=TOTAL, power=2.0),
    "warmup_stable_decay": WarmupStableDecayConfig(warmup_updates=WARMUP, total_updates=TOTAL),
    "constant": ConstantConfig(warmup_updates=WARMUP),
}


def build(config: object, max_updates: int = TOTAL) -> Schedule:
    return build_scheduler(config, LR, max_updates)


@pytest.mark.parametrize("name", ALL)
def test_warm_up_is_a_straight_line_to_the_highest_rate(name: str) -> None:
    schedule = build(ALL[name])
    for update in range(1, WARMUP + 1):
        assert schedule(update) == pytest.approx(LR * update / WARMUP)


@pytest.mark.parametrize("name", ALL)
def test_after_the_warm_up_it_never_rises(name: str) -> None:
    rates = [build(ALL[name])(update) for update in range(WARMUP, TOTAL + 20)]
    assert all(later <= earlier for earlier, later in zip(rates, rates[1:], strict=False))
    assert min(rates) >= 0.0


def test_inverse_sqrt_halves_at_four_times_the_warm_up() -> None:
    schedule = build(ALL["inverse_sqrt"])
    assert schedule(4 * WARMUP) == pytest.approx(LR / 2)
    assert schedule(100 * WARMUP) == pytest.approx(LR / 10)


def test_inverse_sqrt_can_start_above_zero() -> None:
    schedule = build(InverseSqrtConfig(warmup_updates=4, warmup_init_lr=0.4))
    assert [schedule(update) for update in (1, 2, 4)] == pytest.approx([0.5, 0.6, 0.8])


DECAYING = ["cosine", "linear", "polynomial", "warmup_stable_decay"]


@pytest.mark.parametrize("name", DECAYING)
def test_a_decay_ends_at_its_lowest_rate_and_stays_there(name: str) -> None:
    end = {"min_lr": 0.1} if name == "cosine" else {"end_lr": 0.1}
    schedule = build(ALL[name].model_copy(update=end))
    assert schedule(TOTAL) == schedule(TOTAL + 1000) == pytest.approx(0.1)


@pytest.mark.parametrize("name", DECAYING)
def test_a_decay_without_an_end_ends_with_the_training(name: str) -> None:
    schedule = build(ALL[name].model_copy(update={"total_updates": None}), max_updates=60)
    assert schedule(60) == pytest.approx(0.0)
    assert schedule(59) > 0.0


@pytest.mark.parametrize("shape", ["one_minus_sqrt", "linear"])
def test_a_stable_rate_falls_only_at_the_end(shape: str) -> None:
    config = WarmupStableDecayConfig(
        warmup_updates=WARMUP, decay_fraction=0.4, decay=shape, total_updates=100
    )
    schedule = build(config)
    assert all(schedule(update) == LR for update in range(WARMUP, 61))
    assert schedule(61) < LR and schedule(100) == 0.0
    # a quarter of the fall: half of the rate by the root, three quarters by the line
    assert schedule(70) == pytest.approx(LR * {"one_minus_sqrt": 0.5, "linear": 0.75}[shape])


def test_a_decay_has_an_update_however_short_the_run() -> None:
    config = WarmupStableDecayConfig(warmup_updates=0, decay_fraction=1e-6)
    assert build(config, max_updates=3)(2) == LR
    assert build(config, max_updates=3)(3) == 0.0


def test_middles() -> None:
    middle = WARMUP + (TOTAL - WARMUP) // 2
    assert build(ALL["cosine"])(middle) == pytest.approx(LR / 2)
    assert build(ALL["linear"])(middle) == pytest.approx(LR / 2)
    assert build(ALL["polynomial"])(middle) == pytest.approx(LR / 4)
    quarter = WARMUP + (TOTAL - WARMUP) // 4
    assert build(ALL["cosine"])(quarter) == pytest.approx(LR * (1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_no_warm_up_starts_at_the_highest_rate(name: str) -> None:
    schedule = build(ALL[name].model_copy(update={"warmup_updates": 0}))
    assert schedule(1) == pytest.approx(LR, rel=0.02)


def test_an_external_schedule_gets_its_options() -> None:
    config = ExternalConfig(name=f"{__name__}:steps", options={"factor": 0.5})
    with trusting([config.name]):
        schedule = build(config, max_updates=7)
    assert schedule(3) == pytest.approx(LR * 0.5 * 7 * 3)


def steps(lr: float, max_updates: int, factor: float) -> Schedule:
    """The schedule of the test above."""
    return lambda update: lr * factor * max_updates * update


def test_an_unknown_schedule_is_refused() -> None:
    config = ExternalConfig(name="nowhere.at_all:schedule", options={})
    with trusting([config.name]), pytest.raises(UserError, match=r"no module 'nowhere'"):
        build(config)


def test_schedules_are_pure_functions() -> None:
    schedule = schedulers.inverse_sqrt(LR, WARMUP)
    assert [schedule(50), schedule(5), schedule(50)] == [schedule(50), schedule(5), schedule(50)]
