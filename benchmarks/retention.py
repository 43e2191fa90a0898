"""Cost of retention and of attention in a decoder, as texts grow.

Decoding: time and memory of a step at each position, hypotheses reordered at every step as in a
beam search. Training: forward and backward of a layer's mixer over whole texts, retention at once
and in chunks. Random weights; processor time of one thread, medians of turns.

    python benchmarks/retention.py --record
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from common import RESULTS, Goal, finish, table
from curve_plot import load_matplotlib
from torch import Tensor, nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models import build_seq2seq
from ds_seq.models.cache import DecoderCache
from ds_seq.modules.body import Context
from ds_seq.modules.kv_cache import KeyValueBuffer

PICTURE = RESULTS.parents[1] / "docs" / "retention.png"
VOCAB, WIDTH, HEADS, BEAM, SOURCE = 1000, 256, 4, 4, 24
POSITIONS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
WINDOW = 16  # steps up to a position, of which the median is taken; others only fill the cache
LENGTHS = (32, 128, 512, 2048)
TOKENS = 2048  # of a batch of whole texts
# of a step at the last position to one at the first
FLAT, TIME_GOAL = 1.0, 1.3
MIXERS: Mapping[str, dict[str, Any]] = {
    "attention": {},
    "retention, 4 heads": {"name": "retention", "num_heads": 4},
    "retention, 1 head": {"name": "retention", "num_heads": 1},
}
FORMS: Mapping[str, dict[str, Any]] = {
    "attention": {},
    "at once": {"name": "retention", "num_heads": 4, "chunk_size": 1_000_000},
    "chunks of 32": {"name": "retention", "num_heads": 4, "chunk_size": 32},
    "chunks of 128": {"name": "retention", "num_heads": 4, "chunk_size": 128},
    "chunks of 256": {"name": "retention", "num_heads": 4, "chunk_size": 256},
}


class Step(NamedTuple):
    """A step at a position."""

    milliseconds: float
    """Of all hypotheses of a sentence."""
    bytes: int
    """Held by the cache."""


def model_with(mixer: dict[str, Any]) -> Any:
    """Return a model whose decoder has this mixer."""
    cfg = TransformerConfig.model_validate(
        {
            "d_model": WIDTH,
            "ffn_dim": 4 * WIDTH,
            "num_heads": HEADS,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "norm_position": "pre",
            "dropout": 0.0,
            "max_positions": POSITIONS[-1] + 1,
            **({"decoder_mixer": mixer} if mixer else {}),
        }
    )
    return build_seq2seq(cfg, VOCAB, 1, 0, seed=1)


def held_bytes(cache: DecoderCache) -> int:
    """Return the bytes of all tensors of a cache that grow or could grow."""
    holders = [past for call in cache.pasts for past in call if past is not None]
    tensors = [
        value
        for holder in (*holders, cache.paths)
        for value in vars(holder).values()
        if isinstance(value, Tensor)
    ]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@torch.inference_mode()
def decoded(model: Any) -> Iterator[tuple[int, Step]]:
    """Yield the positions with the cost of a step there."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(4, VOCAB, (1, SOURCE), generator=generator)
    encoded = model.eval().encode(source, torch.ones_like(source).bool())
    cache = model.start_cache(encoded, BEAM, POSITIONS[-1])
    spent: list[float] = []
    for position in range(1, POSITIONS[-1] + 1):
        rows = torch.randint(0, 2, (BEAM,), generator=generator)
        following = next(each for each in POSITIONS if each >= position)
        if position <= following - WINDOW:
            _fill(cache)
            cache.reorder(rows)
            continue
        tokens = torch.randint(4, VOCAB, (BEAM,), generator=generator)
        start = time.process_time()
        model.decode_step(tokens, cache)
        cache.reorder(rows)
        spent.append(time.process_time() - start)
        if position in POSITIONS:
            yield position, Step(1e3 * median(spent[-WINDOW:]), held_bytes(cache))


def _fill(cache: DecoderCache) -> None:
    """Take a step without the model: random keys and values; the state of retention stays."""
    cache.advance()
    for call in cache.pasts:
        for past in call:
            if isinstance(past, KeyValueBuffer):
                past.append(*torch.randn(2, 1, HEADS, BEAM, WIDTH // HEADS))


def decoding() -> tuple[str, list[Goal]]:
    """Measure decoding; draw the picture; return the table."""
    found = {name: dict(decoded(model_with(mixer))) for name, mixer in MIXERS.items()}
    rows = [
        [
            f"{position:,}",
            *(f"{steps[position].milliseconds:.2f}" for steps in found.values()),
            *(f"{steps[position].bytes / 1e6:.1f}" for steps in found.values()),
        ]
        for position in POSITIONS
    ]
    header = ["position", *(f"{name}, ms" for name in MIXERS), *(f"{name}, MB" for name in MIXERS)]
    goals = []
    for name in MIXERS:
        if name != "attention":
            first, last = found[name][POSITIONS[0]], found[name][POSITIONS[-1]]
            label = f"{name}: position {POSITIONS[-1]:,} to {POSITIONS[0]}"
            ratio = last.milliseconds / first.milliseconds
            goals.append(Goal(f"{label}, time", ratio, TIME_GOAL, "x", False))
            goals.append(Goal(f"{label}, memory", last.bytes / first.bytes, FLAT, "x", False))
    _draw(found, PICTURE)
    return table(header, rows), goals


def _draw(found: Mapping[str, Mapping[int, Step]], out: Path) -> None:
    picture = load_matplotlib().Figure(figsize=(8, 3.4), layout="constrained")
    labels = {"milliseconds": "ms per step", "bytes": "MB held"}
    for panel, (field, label) in zip(picture.subplots(1, 2), labels.items(), strict=True):
        for name, steps in found.items():
            scale = 1e-6 if field == "bytes" else 1.0
            values = [scale * step._asdict()[field] for step in steps.values()]
            panel.plot(list(steps), values, marker="o", markersize=3, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(POSITIONS, [f"{each:,}" for each in POSITIONS], rotation=45)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("position in the translation")
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    picture.savefig(out, dpi=110)


def _training(mixer: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        mixer(x, Context()).y.sum().backward()

    return run


def whole_texts(rounds: int) -> str:
    """Measure forward and backward over whole texts, in turns; return the table."""
    mixers = {
        name: model_with(section).decoder.layers[0].self_attention.train()
        for name, section in FORMS.items()
    }
    rows = []
    for length in LENGTHS:
        x = torch.randn(TOKENS // length, length, WIDTH, requires_grad=True)
        spent: dict[str, list[float]] = {name: [] for name in mixers}
        for _ in range(rounds + 1):
            for name, mixer in mixers.items():
                start = time.process_time()
                _training(mixer, x)()
                spent[name].append(time.process_time() - start)
        own = {name: median(times[1:]) for name, times in spent.items()}
        ratios = [f"{each / own['attention']:.2f}" for each in own.values()]
        rows.append([f"{TOKENS // length} x {length:,}", *ratios])
    return table(["texts", *FORMS], rows)


def main(argv: Sequence[str]) -> int:
    """Measure, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("decoding", "training"), help="measure only this")
    parser.add_argument("--rounds", type=int, default=5, help="turns over whole texts")
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    parts: list[str] = []
    goals: list[Goal] = []
    if args.only != "training":
        steps, goals = decoding()
        parts.append(
            f"Decoding with 2 layers of width {WIDTH}, beam {BEAM}, float32: processor time of a "
            f"step at a position (median of {WINDOW}), and what the cache holds.\n\n{steps}\n\n"
            f"![Decoding as translations grow](../docs/{PICTURE.name})"
        )
    if args.only != "decoding":
        parts.append(
            "Forward and backward of the mixer of a decoder layer over whole texts, relative to "
            f"attention, medians of {args.rounds} turns:\n\n{whole_texts(args.rounds)}"
        )
    body = "\n\n".join(parts)
    return finish("Retention and attention as texts grow", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
