"""Bytes that the collectives of one update move.

`size` is that of the tensor: what an all-reduce reduces, what a reduce-scatter takes, what an
all-gather returns, what a rank gives to an all-to-all. In a ring of G ranks, each sends
`size (G - 1) / G`, and for an all-reduce twice that.

Small exchanges are left out: norms, counts of tokens, statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ds_seq.config.cost.batch import WIDTH, BatchShape
from ds_seq.config.cost.kinds import CostedConfig
from ds_seq.config.cost.states import Layout, Parameters
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import MoeConfig, TransformerConfig

_COUNT = 8  # bytes of the number of rows for an expert
_ONCE, _TWICE = 1, 2


class Collective(NamedTuple):
    """Collectives of one kind in an update of one rank."""

    name: str
    """`all_reduce`, `reduce_scatter`, `all_gather` or `all_to_all`."""
    what: str
    """What is exchanged."""
    group: int
    """Number of ranks that take part."""
    calls: float
    """How many there are in an update; 0 if that depends on the size of buckets."""
    size: float
    """Bytes of all of them."""

    @property
    def sent(self) -> float:
        """Bytes that a rank sends to others."""
        times = _TWICE if self.name == "all_reduce" else _ONCE
        return times * self.size * (self.group - 1) / self.group


def traffic(
    config: ExperimentConfig,
    model: CostedConfig,
    counts: Parameters,
    layout: Layout,
    batch: BatchShape,
    live: int,
) -> list[Collective]:
    """Return the collectives of one update of one rank.

    Args:
        config: the experiment.
        model: its model.
        counts: parameters of one device.
        layout: where it runs.
        batch: each batch of the rank.
        live: weights that stage 3 keeps gathered between forward and backward.
    """
    found = [*_gradients(config, counts, layout, live)]
    is_spread = isinstance(model, TransformerConfig) and layout.expert_parallel > 1
    if is_spread and model.moe is not None:
        found += _exchanges(config, model, model.moe, layout, batch)
    return [each for each in found if each.group > 1 and each.size]


def _gradients(
    config: ExperimentConfig, counts: Parameters, layout: Layout, live: int
) -> Iterator[Collective]:
    width, batches = WIDTH[config.train.precision], config.train.accumulate
    parts = [
        ("", counts.dense, layout.ranks),
        (" of experts", counts.experts, layout.replicas),
    ]
    if layout.expert_parallel == 1:
        parts = [("", counts.total, layout.ranks)]
    for name, count, group in parts:
        size = count * width
        if layout.stage < 3:
            times = batches if layout.stage == 2 else 1
            yield Collective("all_reduce", f"gradients{name}", group, 0, times * size)
            if layout.stage:
                yield Collective("all_gather", f"weights{name}", group, 0, size)
            continue
        small = min(counts.small, count) if not name else 0.0
        # for forward and backward, unless they stay in between
        times = 1 if counts.total - counts.small <= live else 2
        gathered = batches * times * (count - small) * width
        yield Collective("all_gather", f"weights{name}", group, 0, gathered)
        yield Collective("reduce_scatter", f"gradients{name}", group, 0, batches * size)
        if small:
            yield Collective("all_gather", "weights that stay whole", group, 0, small * width)


def _exchanges(
    config: ExperimentConfig,
    model: TransformerConfig,
    moe: MoeConfig,
    layout: Layout,
    batch: BatchShape,
) -> Iterator[Collective]:
    """Yield the exchanges of the experts: to them and back, forward and backward."""
    group, batches = layout.expert_parallel, config.train.accumulate
    rows = batch.tokens * moe.top_k
    if moe.has_capacity and moe.capacity_factor is not None:
        rows = min(rows, int(rows * moe.capacity_factor))
    size = rows * model.d_model * WIDTH[config.train.precision]
    for stack in model.stacks:
        sparse = [count for count in model.expert_counts(stack) if count]
        calls = len(sparse) * model.repeats_of(stack) * batches
        forwards = 2 if model.activation_checkpointing else 1
        times = 2 * forwards + 2
        yield Collective(
            "all_to_all", f"tokens of the {stack}", group, calls * times, calls * times * size
        )
        numbers = sum(sparse) * model.repeats_of(stack) * batches * forwards * _COUNT
        yield Collective("all_to_all", f"counts of the {stack}", group, calls * forwards, numbers)
