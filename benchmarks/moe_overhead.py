#!/usr/bin/env python3
"""Cost of experts: layer, update, training, beam search, two processes, DeepSpeed's layer.

Every comparison runs in turns, and its ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Section, add_common_arguments, finish
from experiments import CACHE, Recipe, fetch_text, model_section
from overhead_generation import Translating, generation_section
from overhead_growth import Growth, growth_section
from overhead_layer import Shape, deepspeed_section, layer_section
from overhead_training import Runs, parallel_section, training_section

from ds_seq import distributed
from ds_seq.errors import run_command

VOCAB_SIZE = 8000
OPTIMIZER = {"name": "adam", "lr": 5e-4, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.0}


@dataclass(frozen=True)
class Effort:
    """Extent of the measurements.

    Attributes:
        layer_rounds: maximum number of rounds per comparison of layers.
        layer_seconds: time after which a comparison of layers begins no round.
        grid_tokens: numbers of tokens in the comparison with DeepSpeed.
        grid_experts: numbers of experts in the comparison with DeepSpeed.
        growth_rounds: maximum number of rounds of 8 against 64 experts.
        train_rounds: rounds of training.
        train_updates: updates per round.
        sentences: sentences translated per round.
        seconds: time after which any other comparison begins no round.
    """

    layer_rounds: int
    layer_seconds: float
    grid_tokens: Sequence[int]
    grid_experts: Sequence[int]
    growth_rounds: int
    train_rounds: int
    train_updates: int
    sentences: int
    seconds: float


FULL = Effort(
    layer_rounds=30,
    layer_seconds=30,
    grid_tokens=(128, 512, 2048, 4096, 16384),
    grid_experts=(4, 8, 16, 64),
    growth_rounds=10,
    train_rounds=12,
    train_updates=4,
    sentences=256,
    seconds=300,
)
QUICK = Effort(
    layer_rounds=8,
    layer_seconds=4,
    grid_tokens=(128, 2048),
    grid_experts=(4, 64),
    growth_rounds=3,
    train_rounds=3,
    train_updates=2,
    sentences=64,
    seconds=10,
)


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    distributed.keep_freed_memory()  # as every ds-seq command does
    effort = QUICK if arguments.quick else FULL
    done: list[Section] = []
    with tempfile.TemporaryDirectory(prefix="ds_seq_overhead_") as folder:
        for name, measure in SECTIONS.items():
            if arguments.only is None or name in arguments.only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                done.append(measure(arguments, effort, Path(folder)))
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in done)
    goals = [goal for section in done for goal in section.goals]
    return finish("Cost of experts", body, goals, arguments.record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION",
        help=f"sections to run, of {', '.join(SECTIONS)}")  # fmt: skip
    add("--threads", type=int, default=2, help="threads of each system, over all its processes")
    add("--d-model", type=int, default=256, help="model width (default: %(default)s)")
    add("--ffn-dim", type=int, default=1024, help="inner width (default: %(default)s)")
    add("--tokens", type=int, default=2048, help="tokens of a layer's input (default: %(default)s)")
    add("--update-tokens", type=int, default=16384, help="of `growth` (default: %(default)s)")
    add("--layers", type=int, default=4, help="layers of each stack (default: %(default)s)")
    add("--max-tokens", type=int, default=4096, help="tokens per batch, including padding")
    add("--vocab-size", type=int, default=VOCAB_SIZE, help="subwords (default: %(default)s)")
    add("--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text")
    add("--cache", type=Path, default=CACHE, help="folder for text and vocabulary")
    add("--runs", nargs=2, metavar=("DENSE", "MOE"),
        help="run folders for `generation` (default: untrained models)")  # fmt: skip
    return parser.parse_args(argv)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    text = fetch_text(arguments.cache, arguments.tsv)
    return Recipe(
        text=text,
        shards=text / f"shards-{arguments.vocab_size}",
        splits=("train", "valid"),
        vocab_size=arguments.vocab_size,
        model=model_section(arguments.layers, arguments.d_model, arguments.ffn_dim, 0.1),
        train={"max_tokens": arguments.max_tokens},
        optimizer=OPTIMIZER,
        scheduler={"name": "inverse_sqrt", "warmup_updates": 4000},
    )


def _shape(arguments: argparse.Namespace, effort: Effort) -> Shape:
    return Shape(
        arguments.d_model,
        arguments.ffn_dim,
        arguments.tokens,
        arguments.threads,
        effort.layer_rounds,
        effort.layer_seconds,
    )


def _layer(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Section:
    return layer_section(_shape(arguments, effort))


def _deepspeed(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Section:
    return deepspeed_section(_shape(arguments, effort), effort.grid_tokens, effort.grid_experts)


def _growth(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Section:
    length = 32
    return growth_section(
        Growth(
            arguments.d_model,
            arguments.ffn_dim,
            sentences=arguments.update_tokens // length,
            length=length,
            layers=2,
            threads=arguments.threads,
            rounds=effort.growth_rounds,
            seconds=effort.seconds,
        )
    )


def _runs(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Runs:
    return Runs(
        _recipe(arguments),
        folder,
        arguments.threads,
        effort.train_rounds,
        effort.train_updates,
        warmup=2,
        seconds=effort.seconds,
    )


def _training(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Section:
    return training_section(_runs(arguments, effort, folder))


def _parallel(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Section:
    return parallel_section(_runs(arguments, effort, folder))


def _generation(arguments: argparse.Namespace, effort: Effort, folder: Path) -> Section:
    return generation_section(
        Translating(
            _recipe(arguments),
            folder,
            None if arguments.runs is None else tuple(arguments.runs),
            effort.sentences,
            batch=64,
            threads=arguments.threads,
            rounds=effort.train_rounds,
            seconds=effort.seconds,
        )
    )


# DeepSpeed last: it sets a launcher's environment variables and keeps gigabytes of memory
SECTIONS: dict[str, Callable[[argparse.Namespace, Effort, Path], Section]] = {
    "layer": _layer,
    "growth": _growth,
    "training": _training,
    "generation": _generation,
    "parallel": _parallel,
    "deepspeed": _deepspeed,
}


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
