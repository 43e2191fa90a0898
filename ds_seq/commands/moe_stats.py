"""`ds-seq moe-stats`: show how a trained model spreads the tokens of a text over its experts.

    ds-seq moe-stats runs/x --data data/x --out load.png

If sentences begin with a language tag, there is a table and a map for each language.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq import distributed
from ds_seq.commands.arguments.moe_stats import build_parser
from ds_seq.data.batch import ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.corpora import CorporaDataset
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import Source, first_tokens
from ds_seq.errors import UserError
from ds_seq.reports.heat_map import draw_heat_map, save_picture
from ds_seq.reports.metrics import LossSums, layer_figures, load_panel, load_table, router_table
from ds_seq.reports.moe_watch import layer_names
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.data import open_for_model, pairs_as_trained
from ds_seq.runs.open import load_run
from ds_seq.text.lines import check_writable
from ds_seq.text.tokenizer import Tokenizer

_ALL, _UNTAGGED = "all sentences", "without a tag"


class _Measured(NamedTuple):
    """Routing figures of a group of sentences."""

    name: str
    figures: dict[str, Any]
    """Result of `LossSums.reduce`."""

    def title(self) -> str:
        counts = (int(self.figures[key]) for key in ("sentences", "tokens"))
        return "{}: {:,} sentence pairs, {:,} target tokens".format(self.name, *counts)


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq moe-stats`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    _check_arguments(args)
    distributed.keep_freed_memory()
    device = distributed.discover(os.environ).device
    run = load_run(args.run, args.checkpoint, device)
    names = layer_names(run.model)
    if not names:
        raise UserError(f"{args.run}: is a dense model; moe-stats needs one with experts")
    reader = open_for_model(args.data, args.split, args.run, run)
    dataset, groups = examples_by_language(run, reader, args.split)
    measured = _measure(run, dataset, groups, args.max_batches, device)
    if args.out is not None:
        _draw(args.out, measured, names)
    if args.json:
        print(json.dumps(_record(run, args.split, measured, names), indent=1))
    else:
        print(_text(run, measured, names))
    return 0


def examples_by_language(
    run: LoadedRun, reader: ShardReader, split: str
) -> tuple[ParallelDataset, dict[str, NDArray[np.int64]]]:
    """Return the pairs of shards as a model reads them, and their numbers by language tag.

    Args:
        run: the model.
        reader: the shards.
        split: the name of their split.
    """
    dataset = pairs_as_trained(reader, split, run)
    if not isinstance(dataset, CorporaDataset):
        return dataset, languages(dataset.source, dataset.rows, run.tokenizers.source)
    pieces = run.tokenizers.source.pieces
    names = [pieces(part.tags[0][:1])[0] if part.tags[0] else _UNTAGGED for part in dataset.parts]
    of_example = np.asarray(names)[dataset.part_of(np.arange(len(dataset.rows)))]
    return dataset, {name: np.flatnonzero(of_example == name) for name in sorted(set(names))}


def languages(
    source: Source, rows: NDArray[np.integer], tokenizer: Tokenizer
) -> dict[str, NDArray[np.int64]]:
    """Group sentences by the tag at the beginning of their source.

    Args:
        source: the pairs.
        rows: (N,) indices of pairs.
        tokenizer: tokenizer of the source side.

    Returns:
        Positions in `rows` by tag; a single group if no sentence has a tag.
    """
    everything = np.arange(len(rows))
    if not tokenizer.tag_ids:
        return {_ALL: everything}
    first = first_tokens(source, rows)
    groups = {}
    for tag in sorted(tokenizer.tag_ids):
        if len(places := np.flatnonzero(first == tag)):
            groups[tokenizer.pieces([tag])[0]] = places
    if not groups:
        return {_ALL: everything}
    untagged = np.flatnonzero(~np.isin(first, list(tokenizer.tag_ids)))
    return groups | ({_UNTAGGED: untagged} if len(untagged) else {})


@torch.inference_mode()
def _measure(
    run: LoadedRun,
    dataset: ParallelDataset,
    groups: dict[str, NDArray[np.int64]],
    max_batches: int | None,
    device: torch.device,
) -> list[_Measured]:
    """Run the model on each group; the first result covers all sentences."""
    symbols = run.tokenizers.symbols
    batches = {name: _batches(run, dataset, places, max_batches) for name, places in groups.items()}
    total, parts = LossSums(), {name: LossSums() for name in groups}
    with Progress("moe-stats", sum(map(len, batches.values())), "batches") as progress:
        for name, sums in parts.items():
            for indices in batches[name]:
                batch = dataset.collate(indices, symbols).to(device)
                output = run.model(batch.inputs)
                for sink in (total, sums):
                    sink.add({}, output.moe_stats, batch)
                progress(1)
    measured = [_Measured(_ALL, dict(total.reduce()))]
    if len(parts) > 1:
        measured += [_Measured(name, dict(sums.reduce())) for name, sums in parts.items()]
    return measured


def _batches(
    run: LoadedRun, dataset: ParallelDataset, places: NDArray[np.int64], max_batches: int | None
) -> list[NDArray[np.int64]]:
    """Return pair indices per batch; `max_batches` are chosen evenly over all lengths."""
    sizes = run.card.sizes
    lengths = dataset.lengths[places]
    sampler = TokenBatchSampler(lengths, sizes.max_tokens, sizes.max_sentences, accumulate=1)
    batches = [places[indices] for indices in sampler.epoch(0)]
    if max_batches is None or max_batches >= len(batches):
        return batches
    spread = (np.arange(max_batches) + 0.5) * len(batches) / max_batches
    return [batches[int(place)] for place in spread]


def _text(run: LoadedRun, measured: Sequence[_Measured], names: Sequence[str]) -> str:
    blocks = [f"{run.source}"]
    for group in measured:
        figures = group.figures
        blocks.append(
            f"{group.title()}\n{load_table(figures, names)}\n\n{router_table(figures, names)}"
        )
    return "\n\n".join(blocks)


def _record(
    run: LoadedRun, split: str, measured: Sequence[_Measured], names: Sequence[str]
) -> dict[str, Any]:
    """Return the figures for JSON output."""

    def group(figures: dict[str, Any]) -> dict[str, Any]:
        layers = layer_figures(figures)
        known = names if len(names) == len(layers) else [str(index) for index in range(len(layers))]
        return {
            "sentences": int(figures["sentences"]),
            "target_tokens": int(figures["tokens"]),
            "layers": [{"name": name, **layer} for name, layer in zip(known, layers, strict=True)],
        }

    whole, *parts = measured
    return {
        "checkpoint": str(run.source),
        "split": split,
        **group(whole.figures),
        "languages": {part.name: group(part.figures) for part in parts},
    }


def _draw(path: Path, measured: Sequence[_Measured], names: Sequence[str]) -> None:
    panels = [load_panel(group.title(), group.figures, names) for group in measured]
    save_picture(path, draw_heat_map([panel for panel in panels if panel is not None]))


def _check_arguments(args: argparse.Namespace) -> None:
    if args.out is not None:
        if args.out.suffix.lower() != ".png":
            raise UserError(f"--out {args.out}: give a name that ends in .png")
        check_writable(args.out, (args.run, args.data))
