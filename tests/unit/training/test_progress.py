"""Figures of speed: arithmetic, time shares, padding, memory."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_seq.config.flops import training_flops
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.section import Flops
from ds_seq.data.batch import seq2seq_batch
from ds_seq.data.source import TokenBlock
from ds_seq.text.tokenizer import Symbols
from ds_seq.training.peak import _of_gpu, peak_flops
from ds_seq.training.progress import Costs, Window
from ds_seq.training.timing import PARTS, Timing
from tests.distributed.harness import run_distributed

SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2, bos=0)
SMALL = {"d_model": 32, "num_heads": 2, "ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 3}
MOE = {"moe": {"num_experts": 4, "top_k": 2, "capacity_factor": None, "shared_experts": 1}}


def test_chosen_and_shared_experts_count() -> None:
    dense, moe = (TransformerConfig(**{**SMALL, **each}) for each in ({}, MOE))
    before, after = training_flops(dense, 50), training_flops(moe, 50)
    assert before is not None and after is not None
    width, inner = 32, 64
    expert, router = 2 * width * inner, 4 * width
    layers = sum(map(bool, moe.expert_counts("decoder")))
    more = layers * (2 * expert + router)  # three instead of one
    assert layers and after.per_target - before.per_target == 6 * more
    assert after.per_target_pair == before.per_target_pair


def test_lengths_padding_and_use_of_the_peak_are_counted() -> None:
    window = Window(Costs(Timing(), Flops(1.0, 10.0, 0.0, 0.0, 100.0), peak=1e6))
    window.restart(0)
    batch = seq2seq_batch(
        TokenBlock.of([[4, 4, 4, 2], [4, 2]]), TokenBlock.of([[4, 2], [4, 4, 2]]), SYMBOLS
    )
    window.count([batch])
    window.add({"loss": torch.tensor(1.0)}, [], batch)
    window.updates += 1
    time.sleep(0.05)
    figures: dict[str, Any] = dict(window.reduce())
    assert figures["padding"] == pytest.approx(1 - 11 / 14)
    operations = 6 * 1.0 + 5 * 10.0 + (4 * 2 + 2 * 3) * 100.0
    seconds = figures["seconds_per_update"]
    assert figures["mfu"] == pytest.approx(operations / seconds / 1e6, rel=1e-6)
    assert figures["tflops_per_second"] == pytest.approx(operations / seconds / 1e12, rel=1e-6)
    assert 0.05 < figures["memory/host"] < 50 and "memory/device" not in figures


def test_spans_are_counted_but_not_while_paused() -> None:
    window = Window()
    with window.timing.span("forward"):
        time.sleep(0.05)
    with window.paused(), window.timing.span("step"):
        time.sleep(0.01)
    seconds = dict(zip(PARTS, window.timing.take(), strict=True))
    assert 0.05 <= seconds["forward"] < 0.5 and seconds["step"] == 0.0
    assert window.timing.take() == [0.0] * len(PARTS)


def _waits() -> tuple[float, bool]:
    timing, before = Timing(), vars(dist.ProcessGroup)["allreduce"]
    values = torch.ones(4)
    with timing.communication():
        if dist.get_rank() == 1:
            time.sleep(0.3)
        dist.all_reduce(values)
    dist.barrier()  # outside: not counted
    unchanged = vars(dist.ProcessGroup)["allreduce"] is before
    return timing.take()[PARTS.index("communication")], unchanged


def test_waiting_for_another_rank_counts_as_communication() -> None:
    (waited, first), (brief, second) = run_distributed(_waits, 2)
    assert 0.2 < waited < 2.0 and brief < 0.2 and first and second


def test_peaks_are_known_or_measured() -> None:
    assert _of_gpu("NVIDIA H100 80GB HBM3", "bf16", False) == 989.4e12
    assert _of_gpu("NVIDIA H100 PCIe", "fp32", True) == 378e12
    assert _of_gpu("Tesla V100-SXM2-32GB", "fp32", False) == 15.7e12
    assert _of_gpu("NVIDIA L40S", "fp16", False) == 362e12
    assert _of_gpu("Another GPU", "bf16", False) is None
    measured = peak_flops(torch.device("cpu"), "fp32")
    assert measured is not None and 1e8 < measured < 1e15
