"""The smallest run: a model with six weights, saved and resumed like any other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.checkpoint_folder import candidates, first_sound
from ds_seq.training.restore import restore
from ds_seq.weights.fill import load_weights
from tests.saving import save_and_wait
from tests.values import progress_at

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Toy:
    """What a store needs of an engine: a model, Adam, a schedule. Weights are the update's."""

    def __init__(self, update: int = 0) -> None:
        self.module = nn.Linear(2, 2)
        self.adam = torch.optim.Adam(self.module.parameters())
        self.expert_parallel, self.zero_stage, self.ema = 1, 0, None
        self.schedule = SimpleNamespace(updates=update, set_updates=lambda n: None)
        self.deepspeed = SimpleNamespace(
            zero_optimization_stage=lambda: 0,
            optimizer=self.adam,
            basic_optimizer=self.adam,
            module=self.module,
        )
        for parameter in self.module.parameters():
            nn.init.constant_(parameter, update)
            if update:
                moments = {key: torch.full_like(parameter, update) for key in _MOMENTS}
                self.adam.state[parameter] = {"step": torch.tensor(float(update)), **moments}

    def loss_scaler_state(self) -> dict[str, Any]:
        """No loss scale."""
        return {}

    def load_loss_scaler_state(self, state: dict[str, Any]) -> None:
        """Inverse of `loss_scaler_state`."""
        assert state == {}


def open_store(
    run: Path, keep_last: int = 2, keep_best: int = 1, drops_state: bool = False
) -> CheckpointStore:
    """The run's checkpoints."""
    folder = run / "checkpoints"
    return CheckpointStore(
        folder, keep_last, keep_best, True, figure="bleu", drops_state=drops_state
    )


def save(run: Path, update: int, score: float | None = None, **options: Any) -> None:
    """Save the state of an update."""
    engine: Any = Toy(update)
    save_and_wait(open_store(run, **options), engine, update, progress_at(update), score)


def save_in_background(run: Path, update: int, score: float | None = None) -> None:
    """Save it while the model is changed."""
    toy = Toy(update)
    engine: Any = toy
    store = open_store(run)
    assert store.start(engine, update, progress_at(update), score, {}, in_background=True) is None
    for parameter in toy.module.parameters():
        nn.init.constant_(parameter, -1.0)
        toy.adam.state[parameter]["exp_avg"].fill_(-1.0)
    assert store.finish() is None


def resume(run: Path, which: str | None = None) -> int:
    """Do what a training does to resume; return the update after checking the whole state."""
    start, problems = first_sound(candidates(run, which))
    assert start is not None, problems
    engine: Any = Toy()
    load_weights(engine.module, start, checked=True)
    update = int(restore(engine, start, checked=True)["update"])
    open_store(run).continue_after(update)
    for parameter in engine.module.parameters():
        assert torch.equal(parameter, torch.full_like(parameter, update))
        for key in _MOMENTS:
            assert torch.equal(
                engine.adam.state[parameter][key], torch.full_like(parameter, update)
            )
    return update
