"""Time of a map with ternary weights, against the same map in float32 and in 8 bits.

Inference with packed weights: float32 (oneDNN), 8 bits as in `--dtype int8`, and ternary weights
with 8-bit inputs, by integer products and by float32 products of weights that were rounded once.
Training: forward and backward. Processor time, one thread, in turns.

    python benchmarks/bit_maps.py [--record]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from common import add_common_arguments, finish, machine, table
from torch import Tensor
from turns import Rounds, take_turns

from ds_seq.modules.bitlinear import BitLinear, Bits
from ds_seq.modules.linear import Linear

BITS = Bits("ternary", 8, "rms")
SIDES = ("float32", "8 bits", "ternary", "ternary, float products")
ROWS = (1, 5, 20, 160)
WIDTHS = ((512, 2048), (2048, 512))


def _packed(inputs: int, outputs: int) -> dict[str, Linear]:
    maps = {
        "float32": Linear(inputs, outputs),
        "8 bits": Linear(inputs, outputs),
        "ternary": BitLinear(inputs, outputs, bits=BITS),
        "ternary, float products": BitLinear(inputs, outputs, bits=BITS),
    }
    has_integers = torch.cpu._is_vnni_supported
    for name, each in maps.items():
        if name.endswith("products"):  # as on a processor without these instructions
            torch.cpu._is_vnni_supported = lambda: False
        each.pack(int8=name == "8 bits")
        torch.cpu._is_vnni_supported = has_integers
    return maps


def _inference(each: Linear, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return each(x)

    return call


def _training(each: Linear, x: Tensor) -> Callable[[], object]:
    grad = torch.randn(len(x), each.out_features)

    def call() -> None:
        each.zero_grad(set_to_none=True)
        each(x).backward(grad)

    return call


def _ratios(times: Rounds, first: str) -> list[str]:
    mean = {name: [turn.cpu_seconds for turn in turns] for name, turns in times.turns.items()}
    return [
        f"{statistics.median(a / b for a, b in zip(mean[name], mean[first], strict=True)):.2f}"
        for name in mean
        if name != first
    ]


def main() -> int:
    """Measure and print, and record on request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_common_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, rows = 4 if args.quick else 12, []
    for inputs, outputs in WIDTHS:
        maps = _packed(inputs, outputs)
        for count in ROWS:
            x = torch.randn(count, inputs)
            sides = {name: _inference(each, x) for name, each in maps.items()}
            times = take_turns(sides, rounds, turn_seconds=0.01)
            rows.append([f"{inputs} x {outputs}", str(count), *_ratios(times, "float32")])
    training = []
    for inputs, outputs in WIDTHS:
        x = torch.randn(400, inputs, requires_grad=True)
        sides = {
            "float32": _training(Linear(inputs, outputs), x),
            "ternary": _training(BitLinear(inputs, outputs, bits=BITS), x),
        }
        times = take_turns(sides, rounds, turn_seconds=0.01)
        training.append([f"{inputs} x {outputs}", "400", *_ratios(times, "float32")])
    body = "\n".join(
        [
            f"{machine()}, torch {torch.__version__}. Processor time relative to float32",
            f"(median of {rounds} rounds in turns).",
            "",
            "Packed weights, one thread:",
            "",
            table(["map", "rows", *SIDES[1:]], rows),
            "",
            "Forward and backward:",
            "",
            table(["map", "rows", "ternary"], training),
        ]
    )
    return finish("Maps with ternary weights", body, [], args.record)


if __name__ == "__main__":
    raise SystemExit(main())
