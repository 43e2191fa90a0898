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
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from common import RESULTS, Goal, finish, table
from long_outputs import BEAM, POSITIONS, VOCAB, WINDOW, growth
from torch import Tensor, nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models import build_seq2seq
from ds_seq.modules.body import Context

PICTURE = RESULTS.parents[1] / "docs" / "retention.png"
WIDTH, HEADS = 256, 4
LENGTHS = (32, 128, 512, 2048)
TOKENS = 2048  # of a batch of whole texts
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
        models = {name: model_with(mixer) for name, mixer in MIXERS.items()}
        steps, goals = growth(models, [name for name in MIXERS if name != "attention"], PICTURE)
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
