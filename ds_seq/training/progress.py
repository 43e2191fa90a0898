"""The figures of the updates between two lines of the log."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.flops import training_flops
from ds_seq.config.model.section import Flops, LengthSums
from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.data.text_batch import MaskedInputs, TextInputs
from ds_seq.moe.output import RoutingStats
from ds_seq.reports.metrics import Figures, LossSums
from ds_seq.training.peak import peak_flops
from ds_seq.training.timing import PARTS, Timing

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
_GIB = 2**30


@dataclass(frozen=True)
class Costs:
    """What the figures of speed are computed from.

    Attributes:
        timing: measures the spans of updates.
        flops: operations of the model; None if they are not known.
        peak: FLOP/s that the device of this rank can reach; None if it is not known.
    """

    timing: Timing = field(default_factory=Timing)
    flops: Flops | None = None
    peak: float | None = None


def costs_of(config: ExperimentConfig, device: torch.device) -> Costs:
    """Return what the figures of a training are computed from."""
    train = config.train
    flops = training_flops(config.model, config.data.vocab.target_side.size, config.num_passes)
    peak: float | None = None
    if train.peak_tflops is not None:
        peak = 1e12 * train.peak_tflops
    elif flops is not None:
        peak = peak_flops(device, train.precision)
    return Costs(Timing(device), flops, peak)


class Window:
    """Sums over the updates since the last line of the log, and the time they took.

    Attributes:
        timing: measures the spans of updates.
        updates: number of updates since then.
        skipped_before: number of skipped updates of the run at its start.
    """

    def __init__(self, costs: Costs | None = None) -> None:
        self._costs = costs or Costs()
        self.timing = self._costs.timing
        self.restart(0)

    def restart(self, skipped: int) -> None:
        """Begin again, `skipped` updates of the run having been skipped so far."""
        self._sums, self.skipped_before = LossSums(), skipped
        self.updates, self._started = 0, time.monotonic()
        self._real = self._places = self._flops = 0.0
        self.timing.take()

    def add(self, parts: Mapping[str, Tensor], stats: list[RoutingStats], batch: Batch) -> None:
        """Add one batch; see `LossSums.add`."""
        self._sums.add(parts, stats, batch)

    def count(self, batches: Sequence[Batch]) -> None:
        """Count the padding and the arithmetic of the batches of an update, which are on the CPU.

        Those of a task with inputs of its own are not counted.
        """
        for batch in batches:
            inputs = batch.inputs
            if not batch.num_sentences:
                continue
            target = batch.mask.sum(1).double()
            source = target.new_zeros(target.shape)
            if isinstance(inputs, Seq2SeqInputs):
                source = inputs.source_mask.sum(1).double()
                self._places += inputs.source_mask.numel()
            elif isinstance(inputs, MaskedInputs):  # the targets are among the tokens read
                source = inputs.token_mask.sum(1).double()
                self._real -= float(target.sum())
            elif not isinstance(inputs, TextInputs):
                continue
            self._real += float(source.sum() + target.sum())
            self._places += batch.mask.numel()
            if self._costs.flops is not None:
                pairs = (source @ source, target @ target, source @ target)
                sums = LengthSums(*map(float, (source.sum(), target.sum(), *pairs)))
                self._flops += self._costs.flops.of(sums)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, as of a validation, as time of training."""
        began, self.timing.is_paused = time.monotonic(), True
        try:
            yield
        finally:
            self.timing.is_paused = False
            self._started += time.monotonic() - began

    def reduce(self) -> Figures:
        """Return the figures of the updates. A collective.

        Returns:
            Those of `LossSums.reduce`, and as means over all ranks: `tokens_per_second` (target
            tokens, summed over ranks), `seconds_per_update`, `time/data`, `time/forward`,
            `time/backward`, `time/step` and `time/communication` (shares of the time, see
            `ds_seq.training.timing`), `padding` (share of the positions of batches),
            `tflops_per_second` (of the model, per rank) and `mfu` (share of the peak); as maxima
            over all ranks: `memory/host` and `memory/device` (peak since the start, in GiB). What
            is not known is left out.
        """
        figures = self._sums.reduce()
        seconds = max(time.monotonic() - self._started, 1e-9)
        tokens = figures["tokens"]
        assert isinstance(tokens, float)
        local = [self._real, self._places, self._flops, self._costs.peak or 0.0, seconds]
        sums = torch.tensor([*local, *self.timing.take()], dtype=torch.float64)
        real, places, flops, peak, spent, *spans = distributed.sum_over_ranks(sums).tolist()
        host, device = distributed.max_over_ranks(_peak_memory()).tolist()
        return {
            **figures,
            "tokens_per_second": tokens / seconds,
            "seconds_per_update": seconds / max(self.updates, 1),
            **{f"time/{part}": span / spent for part, span in zip(PARTS, spans, strict=True)},
            **({"padding": 1.0 - real / places} if places else {}),
            **({"tflops_per_second": flops / spent / 1e12} if flops else {}),
            **({"mfu": flops / seconds / peak} if flops and peak else {}),
            "memory/host": host / _GIB,
            **({"memory/device": device / _GIB} if device else {}),
        }


def _peak_memory() -> Tensor:
    """Return the most bytes of this process since its start, on the host and on its GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return torch.tensor([host, device], dtype=torch.float64)
