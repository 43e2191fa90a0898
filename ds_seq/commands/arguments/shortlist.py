"""The arguments of `ds-seq shortlist`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ds_seq.commands.arguments.shared import RUN_HELP
from ds_seq.commands.parser import COUNT, CommandParser, Number, command_parser


class LexiconSize(NamedTuple):
    """How a shortlist is learned, and how large it is."""

    targets: int
    """Most translations of a source token."""
    frequent: int
    """Number of frequent target tokens that every source permits."""
    pairs: int
    """Most pairs to use, spread evenly."""
    iterations: int
    """Iterations over these pairs."""

    @classmethod
    def usual(cls) -> LexiconSize:
        """Return what `ds-seq shortlist` takes without options."""
        return cls(targets=100, frequent=100, pairs=100_000, iterations=5)


USUAL_LEXICON = LexiconSize.usual()


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq shortlist`."""
    parser = command_parser(
        "shortlist",
        "Find the likely translations of each source token in the pairs of a training (IBM model "
        "1), for `ds-seq generate --shortlist`, which scores these instead of the whole "
        "vocabulary.",
    )
    add = parser.add_argument
    add("run", help=RUN_HELP)
    add("--data", required=True, type=Path, help="folder of shards made with the run's vocabulary")
    add("--split", default="train", help="split of --data (default: %(default)s)")
    add("--out", required=True, type=Path, metavar="FILE", help="file to write")
    add("--targets", type=COUNT, default=USUAL_LEXICON.targets, metavar="N",
        help="most translations of a source token (default: %(default)s)")  # fmt: skip
    add("--frequent", type=Number(0), default=USUAL_LEXICON.frequent, metavar="N",
        help="number of frequent target tokens that every source permits (default: "
        "%(default)s)")  # fmt: skip
    add("--pairs", type=COUNT, default=USUAL_LEXICON.pairs, metavar="N",
        help="most pairs to use, spread evenly (default: %(default)s)")  # fmt: skip
    add("--iterations", type=COUNT, default=USUAL_LEXICON.iterations, metavar="N",
        help="iterations over these pairs (default: %(default)s)")  # fmt: skip
    return parser
