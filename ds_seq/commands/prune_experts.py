"""`ds-seq prune-experts`: drop the least important experts for a language or a domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.commands.arguments.prune_experts import build_parser
from ds_seq.commands.calibration import (
    Pruned,
    Smaller,
    TextFiles,
    encoded_pairs,
    pruned_lines,
    read_texts,
    write_pruned,
)
from ds_seq.names import Precision
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.export import check_new
from ds_seq.runs.open import load_run
from ds_seq.scores.scoring import Scorer
from ds_seq.surgery.prune import best_experts, importance, parse_keep, prune


@dataclass(frozen=True)
class PrunedExperts(Pruned):
    """A model with fewer experts that was written; see `Pruned`.

    Attributes:
        importance: (E,) importance of each expert, by name of the layer.
        kept: experts that are kept, by name of the layer.
    """

    importance: dict[str, Tensor]
    kept: dict[str, list[int]]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prune-experts`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    texts = TextFiles(
        options.calibration, options.calibration_target, options.input, options.reference
    )
    chosen = {"checkpoint": options.checkpoint, "dtype": options.dtype}
    done = prune_experts(options.run, options.out, options.keep, texts, **chosen)
    print("\n".join([*_report(done.importance, done.kept), *pruned_lines(done)]))
    return 0


def prune_experts(
    run: str | Path,
    out: str | Path,
    keep: str,
    texts: TextFiles,
    *,
    checkpoint: str = "best",
    dtype: Precision = "fp32",
) -> PrunedExperts:
    """Drop the experts that matter least for a kind of text, like `ds-seq prune-experts`.

    Args:
        run: run folder or export, of a model with experts.
        out: new file, if its name ends in `.safetensors`, or folder.
        keep: number of experts to keep in each layer, such as `4`, or one for each: `4,2,4`.
        texts: files of text to measure and to score on.
        checkpoint: `best`, `last`, the name of a checkpoint or a path.
        dtype: number format of the weights.

    Raises:
        UserError: `out` exists, the model has no experts or fewer, or a text is missing.
    """
    out = Path(out)
    check_new(out)
    device = distributed.World().device
    loaded = load_run(Path(run), checkpoint, device, torch.float32)
    experiment = loaded.require_experiment()
    counts = parse_keep(keep, loaded.model, experiment)
    read = read_texts(texts, loaded.card)
    scorer = Scorer(loaded.card.target_lang)
    pairs = encoded_pairs(loaded, read, device)
    limits = run_decoding([loaded], loaded.card.generation).limits
    symbols = loaded.tokenizers.symbols
    found = importance(loaded.model, pairs, symbols, limits, device)
    kept = best_experts(found, counts)
    smaller = Smaller(*prune(loaded.model, experiment, loaded.tokenizers.sizes, kept), "experts")
    written = write_pruned(loaded, smaller, read.scored, scorer, out, dtype)
    return PrunedExperts(**vars(written), importance=dict(found), kept=dict(kept))


def _report(importance: Mapping[str, Tensor], kept: Mapping[str, list[int]]) -> Iterator[str]:
    """Yield a line per layer with its experts and their importance, most important first."""
    for name, values in importance.items():
        order = values.argsort(descending=True, stable=True).tolist()
        texts = {expert: f"{expert} ({values[expert]:.3g})" for expert in order}
        keeps = " ".join(texts[expert] for expert in order if expert in kept[name])
        drops = " ".join(texts[expert] for expert in order if expert not in kept[name])
        yield f"{name}  keeps {keeps}  drops {drops or 'none'}"
