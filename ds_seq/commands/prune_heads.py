"""`ds-seq prune-heads`: cut out the attention heads that matter least for a text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.commands.arguments.prune_heads import build_parser
from ds_seq.commands.calibration import (
    Pruned,
    Smaller,
    TextFiles,
    encoded_pairs,
    pruned_lines,
    read_texts,
    write_pruned,
)
from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.names import CONFIG_FILE, EXPORT_SUFFIX, Precision
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.export import check_new
from ds_seq.runs.open import load_run, open_run
from ds_seq.scores.scoring import Scorer
from ds_seq.surgery.heads import (
    AttentionOfLayer,
    Groups,
    drop_fraction,
    head_importance,
    keep_number,
    prunable,
)
from ds_seq.surgery.heads import prune_heads as without_heads
from ds_seq.surgery.student import fine_tuning


@dataclass(frozen=True)
class PrunedHeads(Pruned):
    """A model with fewer attention heads that was written; see `Pruned`.

    Attributes:
        model: section of the model before.
        importance: importance of each group of heads that share keys and values, by attention.
        kept: groups that are kept, by attention.
    """

    model: TransformerConfig
    importance: dict[AttentionOfLayer, Tensor]
    kept: Groups


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prune-heads`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    texts = TextFiles(
        options.calibration, options.calibration_target, options.input, options.reference
    )
    amount = options.keep if options.fraction is None else options.fraction
    chosen = {"checkpoint": options.checkpoint, "dtype": options.dtype}
    done = prune_heads(options.run, options.out, amount, texts, **chosen)
    print("\n".join([*_report(done.model, done.importance, done.kept), *pruned_lines(done)]))
    if options.out.suffix != EXPORT_SUFFIX:
        print(f"fine-tune:  ds-seq train {shlex.quote(str(options.out / CONFIG_FILE))}")
    return 0


def prune_heads(
    run: str | Path,
    out: str | Path,
    amount: int | float,
    texts: TextFiles,
    *,
    checkpoint: str = "best",
    dtype: Precision = "fp32",
) -> PrunedHeads:
    """Cut out the attention heads that matter least for a text, like `ds-seq prune-heads`.

    Michel et al., 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.

    Args:
        run: run folder or export.
        out: new file, if its name ends in `.safetensors`, or folder, whose `config.yaml` is the
            experiment of the fine-tuning.
        amount: number of heads to keep in each attention, if it is an `int`; a `float` is the
            share of all heads to cut out.
        texts: files of text to measure and to score on.
        checkpoint: `best`, `last`, the name of a checkpoint or a path.
        dtype: number format of the weights.

    Raises:
        UserError: `out` exists, the model has no such heads, or a text is missing.
    """
    run, out = Path(run), Path(out)
    check_new(out)
    model = prunable(open_run(run, checkpoint).require_experiment(), run)
    _check_amount(amount, run, model)
    device = distributed.World().device
    loaded = load_run(run, checkpoint, device, torch.float32)
    experiment = loaded.require_experiment()
    read = read_texts(texts, loaded.card)
    scorer = Scorer(loaded.card.target_lang)
    pairs = encoded_pairs(loaded, read, device)
    limits = run_decoding([loaded], loaded.card.generation).limits
    symbols = loaded.tokenizers.symbols
    importance = head_importance(loaded.model, model, pairs, symbols, limits, device)
    kept = _chosen(amount, model, importance)
    fewer, config = without_heads(loaded.model, experiment, loaded.tokenizers.sizes, kept)
    smaller = Smaller(fewer, fine_tuning(config, out), "heads")
    written = write_pruned(loaded, smaller, read.scored, scorer, out, dtype)
    return PrunedHeads(**vars(written), model=model, importance=dict(importance), kept=kept)


def _check_amount(amount: int | float, run: Path, model: TransformerConfig) -> None:
    """Refuse numbers of heads that no attention can keep."""
    if isinstance(amount, float):
        if not 0.0 < amount < 1.0:
            raise UserError(f"--fraction {amount:g}: must be above 0 and below 1")
        return
    sharing = model.head_counts(model.d_model).sharing
    if amount < 1:
        raise UserError(f"--keep {amount}: at least 1 head is needed")
    if amount > model.num_heads:
        raise UserError(
            f"--keep {amount}: an attention of {run} has {model.num_heads} heads; keep fewer"
        )
    if amount % sharing:
        raise UserError(
            f"--keep {amount}: {sharing} heads share keys and values (model.num_kv_heads "
            f"{model.num_kv_heads}); keep a multiple of {sharing}"
        )


def _chosen(
    amount: int | float, model: TransformerConfig, importance: Mapping[AttentionOfLayer, Tensor]
) -> Groups:
    if isinstance(amount, float):
        return drop_fraction(importance, amount)
    return keep_number(importance, amount // model.head_counts(model.d_model).sharing)


def _report(
    model: TransformerConfig, importance: Mapping[AttentionOfLayer, Tensor], kept: Groups
) -> Iterator[str]:
    """Yield a line per attention with its heads and their importance, most important first.

    Heads are numbered as in the model before any were cut out; those that share keys and values
    are one entry.
    """
    sharing = model.head_counts(model.d_model).sharing
    for where, values in importance.items():
        heads = model.kept_heads(where.kind, where.layer) or list(range(model.num_heads))
        order = values.argsort(descending=True, stable=True).tolist()
        texts = {
            group: "+".join(map(str, heads[group * sharing :][:sharing]))
            + f" ({values[group]:.3g})"
            for group in order
        }
        keeps = " ".join(texts[group] for group in order if group in kept[where])
        drops = " ".join(texts[group] for group in order if group not in kept[where])
        yield f"{where}  keeps {keeps}  drops {drops or 'none'}"
