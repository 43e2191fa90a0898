"""gpu.py: inputs of every section, and the sizes to measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Figures = dict[str, Any]

BIG = {"d_model": 1024, "ffn_dim": 4096, "num_heads": 16, "encoder_layers": 6, "decoder_layers": 6}
TOY = {"d_model": 32, "ffn_dim": 64, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Sizes:
    """Sizes of everything measured.

    Attributes:
        tiny: whether these are toy sizes.
        model: widths and depths of the Transformer.
        vocab: vocabulary size V.
        tokens: tokens per batch on the longer side, with padding; training is measured at each.
        middle: tokens per batch for sections that use one size only.
        steps: timed training steps per size.
        shapes: number of different batches.
        experts: a small and a large number of experts.
        searches: sentences per batch of a beam search.
        mean_length: mean number of tokens of a translation.
    """

    tiny: bool
    model: dict[str, int]
    vocab: int
    tokens: tuple[int, ...]
    middle: int
    steps: int
    shapes: int
    experts: tuple[int, int]
    searches: tuple[int, ...]
    mean_length: int

    @classmethod
    def choose(cls, tiny: bool = False, tokens: int | None = None) -> Sizes:
        """Return the sizes of Transformer-big on WMT, or toy sizes.

        Args:
            tiny: whether to use toy sizes.
            tokens: the only size of a training batch; None for several.
        """
        several, middle = ((64, 96), 96) if tiny else ((8192, 16384, 32768), 16384)
        if tokens is not None:
            several, middle = (tokens,), tokens
        if tiny:
            return cls(True, TOY, 256, several, middle, 2, 2, (4, 8), (4, 8), 6)
        return cls(False, BIG, 32768, several, middle, 8, 4, (8, 64), (32, 128, 512), 25)


@dataclass
class Bench:
    """Inputs and results of a section.

    Attributes:
        sizes: sizes to measure.
        device: device to measure.
        deadline: value of `time.monotonic` by which the section should end.
        figures: results, added as they are measured, so that they survive a time limit.
    """

    sizes: Sizes
    device: torch.device
    deadline: float
    figures: Figures = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


Section = Callable[[Bench], None]


@dataclass(frozen=True)
class Peak:
    """Data sheet of a GPU.

    Attributes:
        half: FLOP/s of dense products in bf16 and fp16.
        tf32: the same in TF32.
        fp32: the same in fp32, without tensor cores.
        bandwidth: memory bandwidth in bytes per second.
    """

    half: float
    tf32: float
    fp32: float
    bandwidth: float

    def flops(self, precision: str) -> float:
        """Return FLOP/s in bf16, fp16 or fp32."""
        return self.fp32 if precision == "fp32" else self.half


PEAKS = {
    "H200": Peak(989e12, 494e12, 67e12, 4.8e12),  # SXM; for NVL cards see `peak_of`
    "H100 80GB HBM3": Peak(989e12, 494e12, 67e12, 3.35e12),  # SXM
    "A100-SXM4-80GB": Peak(312e12, 156e12, 19.5e12, 2.04e12),
}
"""Data sheets by a part of the driver's name of the card."""


def device_name(device: torch.device) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_of(name: str) -> Peak | None:
    """Return the data sheet of the device of this name, or None if unknown.

    Other forms of a card (PCIe, NVL) have lower clocks, so a share of another form's peak would be
    misleading.
    """
    if "NVL" in name or "PCIe" in name:
        return None
    return next((peak for part, peak in PEAKS.items() if part in name), None)
