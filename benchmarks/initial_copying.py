#!/usr/bin/env python3
"""When a decoder begins to read its source, by the deviation of its initial weights.

    python benchmarks/initial_copying.py

Each model, 128 wide with two layers per side, learns to repeat the first 8 of 24 random tokens;
that needs the source, and nothing else. BART's body begins with values as transformers draws them:
a normal distribution of one deviation for all weights (`init_std` of its config, 0.02 by default).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from common import Goal, add_common_arguments, finish, table
from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.errors import run_command
from ds_seq.models.build import build_seq2seq

WIDTH, VOCAB, SPECIAL, START = 128, 1000, 10, 2
SENTENCES, SOURCE, TARGET = 48, 24, 8
UPDATES, WARMUP, RATE = 320, 100, 3e-3
LEARNED = 1.0  # nats per token; those of the tokens' frequencies are 6.2
SIZES: dict[str, Any] = {
    "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "num_heads": 4, "ffn_dim": 512,
    "dropout": 0.1, "max_positions": 128,
}  # fmt: skip
BART: dict[str, Any] = {
    "activation": "gelu", "positions": "learned", "norm_position": "post",
    "embedding_scale": False, "embedding_norm": True,
}  # fmt: skip


class Kind(NamedTuple):
    """A model.

    Attributes:
        section: its options.
        deviation: of all initial weights; None: as ds_seq draws them.
        should_learn: whether it is expected to.
    """

    section: dict[str, Any]
    deviation: float | None
    should_learn: bool = True


KINDS = {
    "ds_seq, pre-norm": Kind({"norm_position": "pre"}, None),
    "BART, drawn by ds_seq": Kind(BART, None),
    "BART, deviation 0.02": Kind(BART, 0.02, should_learn=False),
    "BART, deviation 0.088 (128 ** -0.5)": Kind(BART, WIDTH**-0.5),
}


def drawn(kind: Kind, vocab: int = VOCAB) -> nn.Module:
    """Return a new model with a vocabulary of that size."""
    config = TransformerConfig.model_validate({**SIZES, **kind.section})
    model = build_seq2seq(config, vocab, 1, 0, seed=1).train()
    if kind.deviation is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, kind.deviation)
                elif name.endswith("bias"):
                    parameter.zero_()
            model.target_embedding.weight[model.target_embedding.pad_id].zero_()
    return model


def losses(kind: Kind, updates: int) -> list[float]:
    """Train a model; return the mean loss of each eighth of the updates, in nats per token."""
    torch.manual_seed(1)
    model, draw = drawn(kind), torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    frequencies = 1.0 / torch.arange(SPECIAL, VOCAB).float()
    found = torch.zeros(updates)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((update + 1) / WARMUP, 1.0)
        tokens = torch.multinomial(frequencies, SENTENCES * SOURCE, True, generator=draw)
        source = tokens.view(SENTENCES, SOURCE) + SPECIAL
        labels = source[:, :TARGET]
        target = torch.cat([torch.full((SENTENCES, 1), START), labels[:, :-1]], 1)
        masks = [torch.ones_like(side, dtype=torch.bool) for side in (source, target)]
        inputs = Seq2SeqInputs(source, masks[0], target, masks[1], target.numel(), source.numel())
        loss = nn.functional.cross_entropy(model(inputs).logits, labels.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found[update] = loss.detach()
    return [float(part.mean()) for part in found.chunk(8)]


def main(argv: Sequence[str]) -> int:
    """Train all kinds; return 1 if one does not do what is expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--kinds", type=int, nargs="+", default=list(range(len(KINDS))))
    arguments = parser.parse_args(argv)
    updates = 16 if arguments.quick else UPDATES
    torch.set_num_threads(1)
    rows, goals = [], []
    for name, kind in [list(KINDS.items())[number] for number in arguments.kinds]:
        course = losses(kind, updates)
        rows.append([name, *(f"{value:.2f}" for value in course)])
        if kind.should_learn:
            goals.append(Goal(f"loss that {name} reaches", course[-1], LEARNED, at_least=False))
    header = ["model", *(f"to {updates * part // 8}" for part in range(1, 9))]
    return finish("Copying, by initial weights", table(header, rows), goals, arguments.record)


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
