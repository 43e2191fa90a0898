"""`ds-seq shortlist`: likely translations of each source token, for faster translation."""

from __future__ import annotations

from collections.abc import Sequence

from ds_seq.commands.arguments.shortlist import build_parser
from ds_seq.data.lexicon import learn_lexicon
from ds_seq.errors import UserError
from ds_seq.runs.data import open_for_model
from ds_seq.runs.open import open_run
from ds_seq.runs.shortlist import save_shortlist
from ds_seq.text.lines import check_writable


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq shortlist`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    check_writable(str(args.out), [args.run, args.data])
    run = open_run(args.run, "best")
    if run.card.reads_prompts:
        raise UserError(f"{args.run}: is a language model; a shortlist needs translations")
    source = open_for_model(args.data, args.split, args.run, run)
    tokenizers = run.tokenizers
    lexicon = learn_lexicon(
        source,
        (len(tokenizers.source), len(tokenizers.target)),
        args.targets,
        args.frequent,
        args.pairs,
        args.iterations,
    )
    save_shortlist(lexicon, tokenizers, args.out)
    known = int((lexicon.targets[:, 0] >= 0).sum())
    print(f"{args.out}: translations of {known:,} of {len(lexicon.targets):,} source tokens")
    return 0
