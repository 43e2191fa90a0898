"""moe_overhead.py: cost of more experts at the same number of active parameters.

Shapes: N tokens, D model, E experts.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
from common import Goal, Section, Spread, table
from profiled import operator_seconds, peak_activation_bytes
from torch import Tensor
from turns import take_turns

from ds_seq.config.model import TransformerConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.modules.body import Context
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups

FEW, MANY = 8, 64
TIME_GOAL, MEMORY_GOAL = 35.0, 5.0
GATE_LOSS_WEIGHT = 0.01
_MIB = 2**20


@dataclass(frozen=True)
class Growth:
    """Sizes of the measurement.

    Attributes:
        d_model: model width D.
        ffn_dim: inner width of the dense layer and of each expert.
        sentences: sentences per update.
        length: tokens per sentence.
        layers: layers of the encoder; every second one has experts.
        threads: number of threads of this process.
        rounds: maximum number of rounds.
        seconds: time after which no round begins, provided there have been two.
    """

    d_model: int
    ffn_dim: int
    sentences: int
    length: int
    layers: int
    threads: int
    rounds: int
    seconds: float


@dataclass
class Update:
    """An encoder with experts that is trained one update at a time.

    Attributes:
        parts: seconds in forward, backward and optimizer, a triple per update.
    """

    growth: Growth
    num_experts: int
    parts: list[tuple[float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        growth = self.growth
        moe = {"num_experts": self.num_experts, "top_k": 1, "placement": "encoder", "every": 2}
        config = TransformerConfig.model_validate(
            {
                "d_model": growth.d_model,
                "ffn_dim": growth.ffn_dim,
                "num_heads": max(growth.d_model // 64, 1),
                "encoder_layers": growth.layers,
                "decoder_layers": 1,
                "dropout": 0.0,
                "norm_position": "pre",
                "moe": {**moe, "capacity_factor": None},
            }
        )
        self.encoder = build_seq2seq(
            config, vocab_size=8, expert_parallel=1, expert_parallel_rank=0, seed=1
        ).encoder.train()
        self.optimizer = build_optimizer(AdamConfig(), parameter_groups(self.encoder, 0.0))
        generator = torch.Generator().manual_seed(1)
        shape = (growth.sentences, growth.length, growth.d_model)
        self._x = torch.randn(shape, generator=generator, requires_grad=True)
        self._grad = torch.randn(shape, generator=generator) / growth.sentences

    @property
    def num_parameters(self) -> int:
        """All parameters, including those of idle experts."""
        return sum(p.numel() for p in self.encoder.parameters())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the encoded sentences and the router losses."""
        result = self.encoder(self._x, Context())
        router_losses = sum(sum(layer.losses.values()) for layer in result.aux)
        return result.hidden, GATE_LOSS_WEIGHT * router_losses

    def backward(self, out: Tensor, gate_loss: Tensor) -> None:
        """Compute gradients of the embedded sentences and all parameters."""
        torch.autograd.backward([out, gate_loss], [self._grad, None])

    def __call__(self) -> None:
        """Perform one update."""
        self.drop_gradients()
        times = [time.perf_counter()]
        result = self.forward()
        times.append(time.perf_counter())
        self.backward(*result)
        times.append(time.perf_counter())
        del result
        self.optimizer.step()
        times.append(time.perf_counter())
        self.parts.append((times[1] - times[0], times[2] - times[1], times[3] - times[2]))

    def drop_gradients(self) -> None:
        """Reset the state as between two updates."""
        self.optimizer.zero_grad()
        self._x.grad = None


def growth_section(growth: Growth) -> Section:
    """Compare 8 and 64 experts: time per update, memory of activations, classes of operators."""
    updates = {f"{number} experts": Update(growth, number) for number in (FEW, MANY)}
    few, many = updates
    rounds = take_turns(updates, growth.rounds, growth.seconds)
    peaks = {name: _peak(update) for name, update in updates.items()}
    classes = {name: operator_seconds(update) for name, update in updates.items()}
    rows = []
    for name, update in updates.items():
        kept = update.parts[-rounds.count :]
        seconds = [statistics.median(part) for part in zip(*kept, strict=True)]
        rows.append(
            [
                name,
                f"{update.num_parameters:,}",
                Spread.of([1000 * s for s in rounds.seconds(name)]).text(),
                Spread.of(rounds.ratios(name, few)).text(2),
                *(f"{1000 * part:,.0f}" for part in seconds),
                f"{peaks[name] / _MIB:,.1f}",
            ]
        )
    header = ["encoder with", "parameters", "ms per update", f"to {FEW} experts"]
    header += ["forward", "backward", "optimizer", "peak activations, MiB"]
    names = list(classes[few])
    class_rows = [
        [name, *(f"{1000 * kinds[kind]:,.0f}" for kind in names)] for name, kinds in classes.items()
    ]
    body = (
        f"{table(header, rows)}\n\n{table(['ms per update in', *names], class_rows)}\n\n"
        f"Medians (and extremes) of {rounds.count} rounds: an encoder of {growth.layers} layers, "
        f"experts in every second one, width {growth.d_model}/{growth.ffn_dim}, top-1, no token "
        f"dropped, fp32, Adam, {growth.sentences * growth.length:,} tokens per update in a batch, "
        f"{growth.threads} threads, busy {rounds.busy(growth.threads):.0%} of the time. The "
        "second table is from torch's profiler: the fastest of three updates, each operator "
        "without those it calls. Peak activations: the most that was allocated at one time in "
        "forward and backward, including temporaries, excluding gradients of parameters."
    )
    time_growth = 100 * (statistics.median(rounds.ratios(many, few)) - 1)
    memory_growth = 100 * (peaks[many] / peaks[few] - 1)
    name = f"{FEW} to {MANY} experts"
    goals = [
        Goal(f"{name}, time per update grows", time_growth, TIME_GOAL, "%", at_least=False),
        Goal(f"{name}, peak activations grow", memory_growth, MEMORY_GOAL, "%", at_least=False),
    ]
    return Section("More experts at the same active parameters", body, goals)


def _peak(update: Update) -> int:
    update.drop_gradients()

    def forward_backward() -> None:
        update.backward(*update.forward())

    return peak_activation_bytes(forward_backward, update.encoder.parameters())
