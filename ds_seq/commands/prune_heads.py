"""`ds-seq prune-heads`: cut out the attention heads that matter least for a text."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.commands.arguments.prune_heads import build_parser
from ds_seq.commands.calibration import bleu, encoded_pairs, read_texts
from ds_seq.config.model import TransformerConfig
from ds_seq.errors import UserError
from ds_seq.names import CONFIG_FILE, EXPORT_SUFFIX
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.export import check_new, write_export
from ds_seq.runs.open import DTYPES, load_run, open_run
from ds_seq.scores.scoring import Scorer
from ds_seq.surgery.heads import (
    AttentionOfLayer,
    Groups,
    drop_fraction,
    head_importance,
    keep_number,
    prunable,
    prune_heads,
)
from ds_seq.surgery.student import fine_tuning


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prune-heads`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    model = prunable(open_run(options.run, options.checkpoint).require_experiment(), options.run)
    _check_amount(options, model)
    distributed.keep_freed_memory()
    device = distributed.World().device
    run = load_run(options.run, options.checkpoint, device, torch.float32)
    experiment = run.require_experiment()
    texts = read_texts(options, run.card)
    scorer = Scorer(run.card.target_lang)
    pairs = encoded_pairs(run, texts, device)
    limits = run_decoding([run], run.card.generation).limits
    symbols = run.tokenizers.symbols
    importance = head_importance(run.model, model, pairs, symbols, limits, device)
    kept = _chosen(options, model, importance)
    smaller, config = prune_heads(run.model, experiment, run.tokenizers.sizes, kept)
    config = fine_tuning(config, options.out)
    before = bleu(run, texts.scored, scorer, device, "translate, all heads")
    smaller.to(device)
    pruned = LoadedRun(run.card, config.model, smaller, options.out, config)
    after = bleu(pruned, texts.scored, scorer, device, "translate, pruned")
    smaller.to("cpu", DTYPES[options.dtype])
    path = write_export(smaller, config, run.tokenizers, options.out)
    print("\n".join(_report(model, importance, kept)))
    old, new = (sum(p.numel() for p in each.parameters()) for each in (run.model, smaller))
    print(f"parameters  {old:,} -> {new:,} ({100 * (new - old) / old:+.1f}%)")
    for score, label in ((before, "before"), (after, "after")):
        print(f"{label:10}  {score}")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    if options.out.suffix != EXPORT_SUFFIX:
        print(f"fine-tune:  ds-seq train {shlex.quote(str(options.out / CONFIG_FILE))}")
    return 0


def _check_amount(options: argparse.Namespace, model: TransformerConfig) -> None:
    """Refuse numbers of heads that no attention can keep."""
    if options.fraction is not None:
        if not 0.0 < options.fraction < 1.0:
            raise UserError(f"--fraction {options.fraction:g}: must be above 0 and below 1")
        return
    sharing = model.head_counts(model.d_model).sharing
    if options.keep > model.num_heads:
        raise UserError(
            f"--keep {options.keep}: an attention of {options.run} has {model.num_heads} heads; "
            "keep fewer"
        )
    if options.keep % sharing:
        raise UserError(
            f"--keep {options.keep}: {sharing} heads share keys and values (model.num_kv_heads "
            f"{model.num_kv_heads}); keep a multiple of {sharing}"
        )


def _chosen(
    options: argparse.Namespace,
    model: TransformerConfig,
    importance: Mapping[AttentionOfLayer, Tensor],
) -> Groups:
    if options.fraction is not None:
        return drop_fraction(importance, options.fraction)
    return keep_number(importance, options.keep // model.head_counts(model.d_model).sharing)


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
