"""`ds-seq moe-stats`: show how a trained model spreads the tokens of a text over its experts.

    ds-seq moe-stats runs/x --data data/x --out load.png

If sentences begin with a language tag, there is a table and a map for each language.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ds_seq.runs.open import load_run, parse_device
from ds_seq.text.lines import check_writable
from ds_seq.text.tokenizer import Tokenizer

_ALL, _UNTAGGED = "all sentences", "without a tag"


@dataclass(frozen=True)
class LayerLoad:
    """How a layer spreads tokens over its E experts.

    Attributes:
        name: name of the layer, such as `encoder 1`.
        load: (E,) share of the choices of each expert; the sum is 1.
        figures: other figures by name, such as `entropy` (of routers, in nats) and `load_cv`.
    """

    name: str
    load: NDArray[np.float64]
    figures: dict[str, float]


@dataclass(frozen=True)
class GroupLoads:
    """Routing figures of a group of sentences.

    Attributes:
        name: language tag of the group, or `all sentences`.
        figures: sums of the whole group, see `ds_seq.reports.metrics.LossSums.reduce`.
        names: names of the layers with experts.
    """

    name: str
    figures: dict[str, Any]
    names: list[str]

    @property
    def sentences(self) -> int:
        """Number of sentence pairs."""
        return int(self.figures["sentences"])

    @property
    def target_tokens(self) -> int:
        """Number of target tokens."""
        return int(self.figures["tokens"])

    @property
    def layers(self) -> list[LayerLoad]:
        """Loads of the layers with experts."""
        found = layer_figures(self.figures)
        known = self.names if len(self.names) == len(found) else list(map(str, range(len(found))))
        return [
            LayerLoad(
                name,
                np.asarray(layer["load"], np.float64),
                {key: float(v) for key, v in layer.items() if isinstance(v, int | float)},
            )
            for name, layer in zip(known, found, strict=True)
        ]

    def title(self) -> str:
        """Return a line with the sizes of the group."""
        return (
            f"{self.name}: {self.sentences:,} sentence pairs, {self.target_tokens:,} target tokens"
        )


@dataclass(frozen=True)
class ExpertLoads:
    """How a model spreads the tokens of a text over its experts.

    Attributes:
        source: checkpoint of the model.
        split: split of the shards.
        whole: loads over all sentences.
        languages: loads by language; empty if sentences have no tags.
    """

    source: Path
    split: str
    whole: GroupLoads
    languages: list[GroupLoads]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq moe-stats`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    _check_arguments(args)
    distributed.keep_freed_memory()
    chosen = {"checkpoint": args.checkpoint, "max_batches": args.max_batches}
    found = expert_loads(args.run, args.data, split=args.split, **chosen)
    if args.out is not None:
        _draw(args.out, found)
    if args.json:
        print(json.dumps(_record(found), indent=1))
    else:
        print(_text(found))
    return 0


def expert_loads(
    run: str | Path,
    data: str | Path,
    *,
    split: str = "valid",
    checkpoint: str = "best",
    max_batches: int | None = None,
    device: str | torch.device | None = None,
) -> ExpertLoads:
    """Measure how a model spreads the tokens of a text over its experts, like `ds-seq moe-stats`.

    Args:
        run: run folder or export, of a model with experts.
        data: folder of shards made with its vocabulary.
        split: split of the shards.
        checkpoint: `best`, `last`, the name of a checkpoint or a path.
        max_batches: batches to measure, spread over all lengths; None: all.
        device: device such as `cpu` or `cuda:1`; None: a GPU if there is one.

    Raises:
        UserError: the model has no experts, or the shards are missing or belong to another model.
    """
    place = distributed.discover(os.environ).device if device is None else parse_device(str(device))
    loaded = load_run(Path(run), checkpoint, place)
    names = layer_names(loaded.model)
    if not names:
        raise UserError(f"{run}: is a dense model; moe-stats needs one with experts")
    reader = open_for_model(data, split, run, loaded)
    dataset, groups = examples_by_language(loaded, reader, split)
    measured = _measure(loaded, dataset, groups, max_batches, place)
    whole, *languages = [GroupLoads(name, figures, names) for name, figures in measured.items()]
    return ExpertLoads(Path(loaded.source), split, whole, languages)


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
) -> dict[str, dict[str, Any]]:
    """Run the model on each group; the first of the figures are of all sentences."""
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
    measured = {_ALL: dict(total.reduce())}
    if len(parts) > 1:
        measured |= {name: dict(sums.reduce()) for name, sums in parts.items()}
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


def _text(found: ExpertLoads) -> str:
    blocks = [f"{found.source}"]
    for group in (found.whole, *found.languages):
        tables = load_table(group.figures, group.names), router_table(group.figures, group.names)
        blocks.append("{}\n{}\n\n{}".format(group.title(), *tables))
    return "\n\n".join(blocks)


def _record(found: ExpertLoads) -> dict[str, Any]:
    """Return the figures for JSON output."""

    def group(group: GroupLoads) -> dict[str, Any]:
        layers = zip(group.layers, layer_figures(group.figures), strict=True)
        return {
            "sentences": group.sentences,
            "target_tokens": group.target_tokens,
            "layers": [{"name": layer.name, **figures} for layer, figures in layers],
        }

    return {
        "checkpoint": str(found.source),
        "split": found.split,
        **group(found.whole),
        "languages": {part.name: group(part) for part in found.languages},
    }


def _draw(path: Path, found: ExpertLoads) -> None:
    groups = (found.whole, *found.languages)
    panels = [load_panel(group.title(), group.figures, group.names) for group in groups]
    save_picture(path, draw_heat_map([panel for panel in panels if panel is not None]))


def _check_arguments(args: argparse.Namespace) -> None:
    if args.out is not None:
        if args.out.suffix.lower() != ".png":
            raise UserError(f"--out {args.out}: give a name that ends in .png")
        check_writable(args.out, (args.run, args.data))
