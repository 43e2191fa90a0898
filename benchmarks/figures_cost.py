"""What the figures of speed cost: time spans, padding, arithmetic and memory, per update.

    python benchmarks/figures_cost.py

Times forward, backward and step of a small Transformer on this CPU, and what a training adds to
each update for its figures: in one process, in turns, as time of the CPU. Only the ratio counts.
"""

from __future__ import annotations

import statistics
import time

import torch

from ds_seq.config.flops import training_flops
from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import seq2seq_batch
from ds_seq.data.source import TokenBlock
from ds_seq.models import build_model
from ds_seq.text.tokenizer import Symbols
from ds_seq.training.progress import Costs, Window
from ds_seq.training.timing import Timing

_SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2, bos=0)
_SIZE = {"d_model": 64, "num_heads": 2, "ffn_dim": 128, "encoder_layers": 2, "decoder_layers": 2}
_VOCAB, _TURNS, _LOG_EVERY = 250, 40, 20
_COLLECTIVES = 30  # per update, as of a model with experts


def main() -> None:
    """Print the ratio."""
    config = TransformerConfig(**_SIZE)  # type: ignore[arg-type]
    model = build_model(config, _VOCAB, 1, 0, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = [[5] * (4 + n % 28) for n in range(60)]
    batch = seq2seq_batch(TokenBlock.of(rows), TokenBlock.of(rows), _SYMBOLS)
    window = Window(Costs(Timing(), training_flops(config, _VOCAB), peak=1e12))
    updates, figures = [], []
    for turn in range(_TURNS):
        began = time.process_time()
        model(batch.inputs).logits.logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        middle = time.process_time()
        window.count([batch])
        for _ in range(4 + _COLLECTIVES):
            with window.timing.span("step"):
                pass
        if turn % _LOG_EVERY == 0:  # with the sums of losses, which are older than these figures
            window.add({"loss": torch.tensor(1.0)}, [], batch)
            window.reduce()
            window.restart(0)
        updates.append(middle - began)
        figures.append(time.process_time() - middle)
    update = statistics.median(updates)
    mean = sum(sorted(figures)[: -_TURNS // 20]) / len(sorted(figures)[: -_TURNS // 20])
    print(f"update {1e3 * update:.2f} ms, figures {1e6 * mean:.0f} us: {100 * mean / update:.2f}%")


if __name__ == "__main__":
    main()
