"""`ds-seq prune-experts`: drop the least important experts for a language or a domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.commands.arguments.prune_experts import build_parser
from ds_seq.commands.calibration import bleu, encoded_pairs, read_texts
from ds_seq.runs.card import LoadedRun
from ds_seq.runs.decoding import run_decoding
from ds_seq.runs.export import check_new, write_export
from ds_seq.runs.open import DTYPES, load_run
from ds_seq.scores.scoring import Scorer
from ds_seq.surgery.prune import best_experts, importance, parse_keep, prune


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq prune-experts`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    device = distributed.World().device
    run = load_run(options.run, options.checkpoint, device, torch.float32)
    experiment = run.require_experiment()
    keep = parse_keep(options.keep, run.model, experiment)
    texts = read_texts(options, run.card)
    scorer = Scorer(run.card.target_lang)
    pairs = encoded_pairs(run, texts, device)
    limits = run_decoding([run], run.card.generation).limits
    expert_importance = importance(run.model, pairs, run.tokenizers.symbols, limits, device)
    kept = best_experts(expert_importance, keep)
    smaller, config = prune(run.model, experiment, run.tokenizers.sizes, kept)
    before = bleu(run, texts.scored, scorer, device, "translate, all experts")
    smaller.to(device)
    pruned = LoadedRun(run.card, config.model, smaller, options.out, config)
    after = bleu(pruned, texts.scored, scorer, device, "translate, pruned")
    smaller.to("cpu", DTYPES[options.dtype])
    path = write_export(smaller, config, run.tokenizers, options.out)
    print("\n".join(_report(expert_importance, kept)))
    old, new = (sum(p.numel() for p in model.parameters()) for model in (run.model, smaller))
    print(f"parameters  {old:,} -> {new:,} ({100 * (new - old) / old:+.1f}%)")
    for score, label in ((before, "before"), (after, "after")):
        print(f"{label:10}  {score}")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _report(importance: Mapping[str, Tensor], kept: Mapping[str, list[int]]) -> Iterator[str]:
    """Yield a line per layer with its experts and their importance, most important first."""
    for name, values in importance.items():
        order = values.argsort(descending=True, stable=True).tolist()
        texts = {expert: f"{expert} ({values[expert]:.3g})" for expert in order}
        keeps = " ".join(texts[expert] for expert in order if expert in kept[name])
        drops = " ".join(texts[expert] for expert in order if expert not in kept[name])
        yield f"{name}  keeps {keeps}  drops {drops or 'none'}"
