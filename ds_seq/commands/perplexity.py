"""`ds-seq perplexity`: how well a language model predicts text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq import distributed
from ds_seq.commands.arguments.perplexity import build_parser
from ds_seq.commands.options import chosen_device
from ds_seq.names import LM_METRICS
from ds_seq.runs.open import load_packed
from ds_seq.runs.perplexity import TextFigures, text_blocks, text_figures
from ds_seq.text.lines import read_lines


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq perplexity`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    device = chosen_device(args, distributed.discover(os.environ))
    run = load_packed(args.run, args.checkpoint, args.dtype, device)
    blocks = text_blocks(run, args.block_tokens, args.context_window, args.stride)
    texts = {Path(name).as_posix(): read_lines(name) for name in args.input}
    found = text_figures(run, texts, blocks, args.max_tokens, device)
    if args.json:
        print(json.dumps(_record(found), indent=2))
        return 0
    print(
        f"{found.tokens:,} tokens in blocks of {blocks.most:,}, {blocks.context:,} of them context"
    )
    print(f"nll per token {found.nll:.4f} ({found.bits:.4f} bits)")
    for name, value in found.values.items():
        print(f"{name.replace('_', ' ')} {value:.2f}")
    return 0


def _record(found: TextFigures) -> dict[str, Any]:
    record: dict[str, Any] = {"tokens": found.tokens, "nll": found.nll, "bits": found.bits}
    for name in LM_METRICS:
        record[name] = found.values[name]
        if len(found.by_text) > 1:
            record[f"{name}_by_file"] = {text: of[name] for text, of in found.by_text.items()}
    return record
