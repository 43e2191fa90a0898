"""Time and memory of full and of dilated attention over one text, as it grows.

Forward and backward of an encoder layer's self-attention. Each measurement runs in a process of its
own with one thread: processor time, and by how much its memory grew at most. Full attention is
measured with PyTorch's fused kernel, and up to 4,096 tokens without it, when maps are in memory. A
length is skipped where the one before lets expect more than `--limit` seconds.

    python benchmarks/long_attention.py --record
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RESULTS, Goal, finish, table
from curve_plot import plot_growth
from torch.nn.attention import SDPBackend, sdpa_kernel

from ds_seq.config.model import TransformerConfig
from ds_seq.models import build_seq2seq
from ds_seq.modules.body import Context

PICTURE = RESULTS.parents[1] / "docs" / "long_attention.png"
WIDTH, HEADS = 256, 4
LENGTHS = tuple(1024 * 2**each for each in range(7))
LONGEST_MAPS = 4096
GROWTH, FASTER = 1.5, 3.0
COMPARED, FIRST = 16384, 8192
SEGMENTS = {"segment_lengths": [512, 2048, 8192], "dilations": [1, 4, 16]}


class Kind(NamedTuple):
    """A kind of attention."""

    mixer: dict[str, Any]
    fused: bool


KINDS: Mapping[str, Kind] = {
    "attention with maps": Kind({"name": "attention"}, False),
    "attention, fused": Kind({"name": "attention"}, True),
    "dilated": Kind({"name": "dilated", **SEGMENTS}, True),
}


class Cost(NamedTuple):
    """Of forward and backward over one text."""

    seconds: float
    megabytes: float


def _measure(kind: Kind, length: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    cfg = TransformerConfig.model_validate(
        {
            "d_model": WIDTH,
            "num_heads": HEADS,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "dropout": 0.0,
            "encoder_mixer": kind.mixer,
        }
    )
    mixer: Any = build_seq2seq(cfg, 100, 1, 0, seed=1).encoder.layers[0].self_attention
    backends = [SDPBackend.MATH] + [SDPBackend.FLASH_ATTENTION] * kind.fused

    def run(x: torch.Tensor) -> None:
        with sdpa_kernel(backends):
            mixer(x, Context()).y.sum().backward()

    run(torch.randn(1, 64, WIDTH, requires_grad=True))
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    run(x)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    pipe.send(Cost(seconds, grown / 1024))


def measured(kind: Kind, length: int) -> Cost:
    """Measure in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(kind, length, sender))
    process.start()
    sender.close()
    cost: Cost = receiver.recv()
    process.join()
    return cost


def costs(limit: float) -> dict[str, dict[int, Cost]]:
    """Return the costs of each kind by length."""
    found: dict[str, dict[int, Cost]] = {name: {} for name in KINDS}
    for length in LENGTHS:
        for name, kind in KINDS.items():
            if not kind.fused and length > LONGEST_MAPS:
                continue
            last = found[name].get(length // 2)
            if length > LENGTHS[0] and (last is None or 4 * last.seconds > limit):
                continue
            found[name][length] = measured(kind, length)
            print(f"{name}, {length:,}: {found[name][length]}", flush=True)
    return found


def _rows(found: Mapping[str, Mapping[int, Cost]]) -> list[list[str]]:
    return [
        [
            f"{length:,}",
            *(f"{c.seconds:.2f}" if (c := by.get(length)) else "-" for by in found.values()),
            *(f"{c.megabytes:,.0f}" if (c := by.get(length)) else "-" for by in found.values()),
        ]
        for length in LENGTHS
    ]


def _goals(found: Mapping[str, Mapping[int, Cost]]) -> list[Goal]:
    dilated, full = found["dilated"], found["attention, fused"]
    longer = LENGTHS[-1] / FIRST
    first, last = dilated[FIRST], dilated[LENGTHS[-1]]
    span = f"dilated, {LENGTHS[-1]:,} tokens to {FIRST:,}, per token"
    ratio = full[COMPARED].seconds / dilated[COMPARED].seconds
    return [
        Goal(f"{span}: time", last.seconds / first.seconds / longer, GROWTH, "x", False),
        Goal(f"{span}: memory", last.megabytes / first.megabytes / longer, GROWTH, "x", False),
        Goal(f"full attention to dilated at {COMPARED:,} tokens, time", ratio, FASTER, "x"),
    ]


def _draw(found: Mapping[str, Mapping[int, Cost]], out: Path) -> None:
    labels = {"seconds": "s of processor time", "megabytes": "MB"}
    panels = {
        label: {
            name: {length: each._asdict()[field] for length, each in by_length.items()}
            for name, by_length in found.items()
        }
        for field, label in labels.items()
    }
    ticks = [(each, f"{each // 1024}k") for each in LENGTHS]
    plot_growth(panels, ticks, "tokens of the text", out, is_log=True)


def main(argv: Sequence[str]) -> int:
    """Measure, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a measurement")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    found = costs(args.limit)
    _draw(found, PICTURE)
    header = ["tokens", *(f"{name}, s" for name in found), *(f"{name}, MB" for name in found)]
    body = (
        f"Width {WIDTH}, {HEADS} heads, float32; segments {SEGMENTS['segment_lengths']}, dilations "
        f"{SEGMENTS['dilations']}.\n\n{table(header, _rows(found))}\n\n"
        f"![Attention as texts grow](../docs/{PICTURE.name})"
    )
    return finish("Full and dilated attention as texts grow", body, _goals(found), args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
