"""Stand-ins for the modules around the trainer; each records its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ds_seq.config.train import TrainConfig
from ds_seq.criterions.base import Criterion, Loss
from ds_seq.data.batch import Batch
from ds_seq.models.output import ModelOutput
from ds_seq.moe.output import RoutingStats
from ds_seq.training.divergence import Divergence
from ds_seq.training.engine import StepResult
from ds_seq.training.returns import Returns
from ds_seq.training.stages import StageWatch
from ds_seq.training.trainer import Trainer
from ds_seq.training.validation import BestBy
from tests.batches import batch_of


def make_batch(num_tokens: int) -> Batch:
    """One sentence with this many target tokens; none gives the empty batch."""
    tokens = torch.full((1, max(num_tokens, 1)), 4 if num_tokens else 1)
    batch = batch_of(tokens, tokens)
    return batch if num_tokens else replace(batch, num_sentences=0)


def make_stats(load: Sequence[float], dropped: float = 0.0, **losses: float) -> RoutingStats:
    """Statistics of a layer with one expert per token; `losses` are means over its tokens."""
    tokens = torch.tensor(float(sum(load)))
    return RoutingStats(
        torch.tensor(load).float(),
        torch.tensor(dropped),
        tokens * 0.5,
        tokens,
        {name: tokens * loss for name, loss in losses.items()},
    )


class FakeEngine:
    """An engine whose model is one number and whose loss is a token count."""

    def __init__(self, accumulate: int = 1, module: nn.Module | None = None) -> None:
        self.accumulate = accumulate
        self.results: list[StepResult] = []
        self.device = torch.device("cpu")
        self.module = module or nn.Linear(1, 1)
        self.schedule = SimpleNamespace(lr=0.5)
        self.stats: Callable[[Batch], list[RoutingStats]] = lambda batch: []
        self.losses: list[float] = []
        self.draws: list[float] = []
        self.forward_is_collective = True  # nothing is survived
        self.accumulation = SimpleNamespace(of=lambda count: nullcontext(lambda place: None))
        self.loss_scaler_state = lambda: {}
        self.on_step: Callable[[int], object] = lambda update: None

    def __call__(self, batch: Batch) -> ModelOutput:
        assert self.module.training
        self.draws.append(torch.rand(()).item())
        return ModelOutput(torch.zeros(batch.num_tokens, 3), {}, self.stats(batch))

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())

    def step(self, name_gradients: bool = False) -> StepResult | None:
        if len(self.losses) % self.accumulate:
            return None
        update = len(self.losses) // self.accumulate
        self.on_step(update)
        return self.results[update - 1] if self.results else StepResult(True, 2.0, 1.0)


class FakeStream:
    """Batches of given token counts, ``epochs`` times over."""

    stage, num_stages = None, 0

    def __init__(self, tokens: list[int], epochs: int) -> None:
        self.all = tokens * epochs
        self.taken, self.epoch = 0, 1

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.taken == len(self.all):
            raise StopIteration
        self.taken += 1
        return make_batch(self.all[self.taken - 1])

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]

    def close(self) -> None:
        self.taken = len(self.all)


class FakeCriterion(Criterion):
    """Return the scene's nats per token; record the hooks that are called."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        assert self.training
        self._scene.events.append(("batch", batch.num_tokens))
        total = torch.tensor(self._scene.loss_per_token * batch.num_tokens)
        return Loss(total, {"nll": total})

    def end_update(self, applied: bool) -> None:
        self._scene.events.append(("end_update", applied))

    def state(self) -> dict[str, torch.Tensor]:
        return {"hooks": torch.tensor(len(self._scene.of_kind("end_update")))}


class Scene:
    """A trainer among stand-ins, and the events of its run in order."""

    def __init__(
        self,
        tokens: list[int] | None = None,
        epochs: int = 100,
        accumulate: int = 1,
        scores: list[float] | None = None,
        module: nn.Module | None = None,
        best: BestBy = BestBy("bleu", higher_is_better=True),  # noqa: B008 - a constant
        **settings: Any,
    ) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.scores = iter(scores or [float(n) for n in range(1, 1000)])
        self.engine = FakeEngine(accumulate, module)
        self.loss_per_token = 1.0
        self.valid_figures: dict[str, Any] = {}
        log = SimpleNamespace(
            record=lambda kind, update, figures: self.events.append((kind, update, figures)),
            picture=lambda tag, update, panel: self.events.append(("picture", tag, update, panel)),
            advance=lambda update, brief=None: None,
            say=lambda text: self.events.append(("said", text)),
            end=lambda update, reason, error=None: self.events.append(("ended", update, reason)),
            close=lambda: self.events.append(("closed",)),
        )
        saves = SimpleNamespace(
            save=self._save,
            finish=lambda: [],
            close=lambda: None,
            require_last=lambda: None,
            failed=threading.Event(),
            num_failed=0,
            last_error=None,
        )
        defaults = {"log_every": 1000, "validate_every": None, "save_every": 1000}
        config = TrainConfig(**{**defaults, "max_updates": 4, **settings})  # type: ignore[arg-type]
        stream: Any = FakeStream(tokens or [2], epochs)
        parts: list[Any] = [
            self.engine,
            FakeCriterion(self),
            stream,
            self._validate,
            saves,
            log,
            config,
            best,
            StageWatch(stream, {}),
            Divergence(config, self.engine, log, lambda rows: {"train": list(rows)}),  # type: ignore[arg-type]
            Returns(Path(), config, self.engine, FakeCriterion(self), log),  # type: ignore[arg-type]
        ]
        self.trainer = Trainer(*parts)

    def _validate(self, max_batches: int | None = None) -> dict[str, Any]:
        if max_batches is not None:
            self.events.append(("rehearsal", max_batches))
            return {}
        score = next(self.scores)
        return {"loss": score, "bleu": score, **self.valid_figures}

    def _save(
        self,
        engine: FakeEngine,
        update: int,
        progress: dict[str, Any],
        score: float | None,
        criterion: dict[str, torch.Tensor],
    ) -> list[str]:
        self.progress, self.criterion_state = progress, criterion
        self.events.append(("save", update, score))
        return []

    def of_kind(self, kind: str) -> list[tuple[Any, ...]]:
        """The events of one kind, without its name."""
        return [event[1:] for event in self.events if event[0] == kind]
