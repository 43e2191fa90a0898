"""`ds-seq shortlist`: likely translations of each source token, for faster translation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_seq.commands.arguments.shortlist import USUAL_LEXICON, LexiconSize, build_parser
from ds_seq.data.lexicon import learn_lexicon
from ds_seq.errors import UserError
from ds_seq.runs.data import open_for_model
from ds_seq.runs.open import open_run
from ds_seq.runs.shortlist import save_shortlist
from ds_seq.text.lines import check_writable


@dataclass(frozen=True)
class LearnedShortlist:
    """A shortlist that was written.

    Attributes:
        path: its file, for the search option `shortlist`.
        num_known: number of source tokens with translations.
        num_tokens: number of source tokens.
    """

    path: Path
    num_known: int
    num_tokens: int


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq shortlist`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    size = LexiconSize(args.targets, args.frequent, args.pairs, args.iterations)
    done = learn_shortlist(args.run, args.data, args.out, split=args.split, lexicon_size=size)
    known, total = done.num_known, done.num_tokens
    print(f"{done.path}: translations of {known:,} of {total:,} source tokens")
    return 0


def learn_shortlist(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    lexicon_size: LexiconSize = USUAL_LEXICON,
) -> LearnedShortlist:
    """Find the likely translations of each source token, like `ds-seq shortlist`.

    Brown et al., 1993, "The Mathematics of Statistical Machine Translation" (IBM model 1).

    Args:
        run: run folder or export, whose vocabulary the shards have.
        data: folder of shards.
        out: file to write, for `model.translate(lines, shortlist=out)`.
        split: split of the shards.
        lexicon_size: numbers of translations and pairs.

    Raises:
        UserError: a file is missing or belongs to another model, `out` cannot be written, or the
            model is a language model.
    """
    run, data, out = str(run), Path(data), Path(out)
    check_writable(str(out), [run, str(data)])
    stored = open_run(run, "best")
    if stored.card.reads_prompts:
        raise UserError(f"{run}: is a language model; a shortlist needs translations")
    source, tokenizers = open_for_model(data, split, run, stored), stored.tokenizers
    sizes = (len(tokenizers.source), len(tokenizers.target))
    lexicon = learn_lexicon(source, sizes, *lexicon_size)
    save_shortlist(lexicon, tokenizers, out)
    return LearnedShortlist(out, int((lexicon.targets[:, 0] >= 0).sum()), len(lexicon.targets))
