"""The options that choose metrics of a whole text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from ds_seq.names import TEXT_METRICS
from ds_seq.plugins import nearest

ROUGE_GROUP = "rouge"
"""Stands for all kinds of ROUGE."""
METRIC_NAMES = (*TEXT_METRICS, ROUGE_GROUP)
_CONFIDENCE = "95%% bootstrap confidence intervals"


def add_metrics(
    parser: argparse.ArgumentParser, names: Sequence[str], default: str, confidence: str = ""
) -> None:
    """Add `--metrics`, `--no-stemmer` and `--confidence`.

    Args:
        parser: parser of the command.
        names: metrics that the command knows.
        default: what is measured without the option, for the help text.
        confidence: what the help text of the intervals adds.
    """
    add = parser.add_argument
    add("--metrics", nargs="+", type=_one_of(names), metavar="M",
        help=f"some of {', '.join(names)}, or package.module:Name (default: {default})"
        )  # fmt: skip
    add("--no-stemmer", action="store_true",
        help="rouge: compare English words with their endings, which is not usual")  # fmt: skip
    add("--confidence", action="store_true", help=_CONFIDENCE + confidence)


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def metric_name(text: str) -> str:
        if text not in names and ":" not in text:
            raise argparse.ArgumentTypeError(
                f"no metric {text!r}{nearest(text, names)}; there are {', '.join(names)}, or "
                "package.module:Name"
            )
        return text

    return metric_name
