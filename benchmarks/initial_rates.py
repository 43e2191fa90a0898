#!/usr/bin/env python3
"""When a small BART begins to read its source, by initial weights, learning rate and warm-up.

    python benchmarks/summarization.py --raw RAW --out FOLDER --python PYTHON --only bart
    python benchmarks/initial_rates.py --runs FOLDER --model bart --deviation 0.0625 --rate 2e-3

The text is that of `summarization.py` with the vocabulary of its BART; sources are cut to 24
tokens, batches have 40 pairs of about the same length of target, and the rate stays constant after
the warm-up, so that 300 updates take less than a minute. The loss on 100 validation pairs with
their own sources is compared with that with each other's: the difference is what the source is
worth to the model, and 0 for one that has learned the frequencies of the words only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import Goal, add_common_arguments, finish, table
from initial_copying import BART, Kind, drawn
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_seq.config.load import load_experiment
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.data.truncation import TruncatedSource
from ds_seq.errors import run_command
from ds_seq.text.build import load_tokenizers
from ds_seq.text.tokenizer import Symbols

SOURCE, TARGET, PAIRS, EVERY = 24, 24, 40, 50
GROUPED = 20  # batches whose pairs are sorted by the length of the target
VALID, STRIDE = 100, 8
WORTH = 0.1  # nats per token that the source should be worth at the end
BODIES = {"pre": {"norm_position": "pre"}, "post": {"norm_position": "post"}, "bart": BART}


class Text(NamedTuple):
    """The pairs to learn and to measure on."""

    train: ParallelDataset
    valid: ParallelDataset
    symbols: Symbols
    vocab: int

    def batches(self) -> Iterator[Batch]:
        """Yield batches of training, endlessly and in the same order in every call."""
        draw = np.random.default_rng(5)
        order = draw.permutation(len(self.train))
        cut: list[NDArray[np.int64]] = []
        size = GROUPED * PAIRS
        for start in range(0, len(order) - size, size):
            part = order[start : start + size]
            part = part[np.argsort(self.train.lengths[part, 1], kind="stable")]
            some = [part[first : first + PAIRS] for first in range(0, size, PAIRS)]
            draw.shuffle(some)  # type: ignore[arg-type]
            cut += some
        while True:
            for pairs in cut:
                yield self.train.collate(pairs, self.symbols)


def read(folder: Path) -> Text:
    """Read what `summarization.py` has prepared for its BART."""
    data = folder / "data-bart"
    config = load_experiment(folder / "bart-import" / "config.yaml", [f"data.dir={data}"])
    tokenizers = load_tokenizers(config.data, data)
    sides = []
    for split in ("train", "valid"):
        source = TruncatedSource(ShardReader(data, split, tokenizers.fingerprint), (SOURCE, None))
        sides.append(ParallelDataset(source, SOURCE, TARGET))
    return Text(sides[0], sides[1], tokenizers.symbols, len(tokenizers.target))


class Course(NamedTuple):
    """Loss on the validation pairs in nats per token, by update.

    Attributes:
        own: with their own sources.
        other: with each other's.
        norms: median and largest gradient norm since the last entry.
    """

    own: dict[int, float]
    other: dict[int, float]
    norms: dict[int, tuple[float, float]]


def learn(text: Text, kind: Kind, arguments: argparse.Namespace, updates: int) -> Course:
    """Train a model; return how it went."""
    torch.manual_seed(3)
    model = drawn(kind, text.vocab)
    torch.manual_seed(1)
    criterion = CrossEntropy(0.1, "fairseq")
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=1e-4)
    valid = text.valid.collate(np.arange(0, VALID * STRIDE, STRIDE), text.symbols)
    turned = torch.roll(torch.arange(VALID), 1)
    moved = valid.inputs._replace(
        source=valid.inputs.source[turned], source_mask=valid.inputs.source_mask[turned]
    )

    @torch.no_grad()
    def measure() -> list[float]:
        model.eval()
        found = [criterion(model(inputs), valid).parts["nll"] for inputs in (valid.inputs, moved)]
        model.train()
        return [float(nll) / len(valid.real_labels) for nll in found]

    course, norms = Course({}, {}, {}), list[Tensor]()
    for update, batch in zip(range(1, updates + 1), text.batches()):  # noqa: B905
        for group in adam.param_groups:
            group["lr"] = arguments.rate * min(update / arguments.warmup, 1.0)
        loss = criterion(model(batch.inputs), batch).total / len(batch.real_labels)
        adam.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), arguments.clip))
        adam.step()
        if update % EVERY == 0:
            course.own[update], course.other[update] = measure()
            seen = torch.stack(norms)
            course.norms[update] = float(seen.median()), float(seen.max())
            norms.clear()
            print(f"{update}: {course.own[update]:.2f}", file=sys.stderr, flush=True)
    return course


def main(argv: Sequence[str]) -> int:
    """Train one model, and print its course."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    add = parser.add_argument
    add("--runs", type=Path, required=True, help="folder that summarization.py wrote")
    add("--model", choices=BODIES, default="bart", help="body: BART's, or ours")
    add("--deviation", type=float, help="of all initial weights (default: as ds_seq draws them)")
    add("--rate", type=float, default=1e-3, help="learning rate")
    add("--warmup", type=int, default=100, metavar="N", help="updates in which the rate grows")
    add("--clip", type=float, default=1.0, help="largest gradient norm")
    add("--updates", type=int, default=300, metavar="N")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    kind = Kind(BODIES[arguments.model], arguments.deviation)
    course = learn(
        read(arguments.runs), kind, arguments, EVERY if arguments.quick else arguments.updates
    )
    rows = [
        [
            f"{update:,}",
            f"{own:.2f}",
            f"{course.other[update] - own:.2f}",
            "{:.2f} ({:.2f})".format(*course.norms[update]),
        ]
        for update, own in course.own.items()
    ]
    last = max(course.own)
    name = f"what the source is worth after {last} updates, nats per token"
    goals = [Goal(name, course.other[last] - course.own[last], WORTH)]
    header = ["update", "loss", "worth of the source", "gradient norm (largest)"]
    title = "Reading the source, by initial weights and learning rate"
    return finish(title, table(header, rows), goals, arguments.record)


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
