"""How different the translations of n-best lists are, and how good.

`ds-seq generate runs/x --expert all --format jsonl` gives a list by experts, `--n-best 3` without
it one of a beam search. Pairwise BLEU (Shen et al., 2019) is the mean over all ordered pairs of
ranks of the BLEU of one rank against the other: 100 means that all translations of a line are
equal.

    python -m benchmarks.diversity REFERENCE experts.jsonl beam.jsonl [--record]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

from benchmarks.common import Goal, finish, table
from ds_seq.scores.scoring import build_metric, score_corpus


def bleu(hypotheses: list[str], references: list[str]) -> float:
    """Return the corpus BLEU of detokenized German."""
    return score_corpus("bleu", build_metric("bleu", "de"), hypotheses, [references]).value


def ranks(path: Path) -> list[list[str]]:
    """Return the translations of all lines by rank; each line must have as many."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lists = [[each["text"] for each in json.loads(line)["hypotheses"]] for line in lines]
    return [list(rank) for rank in zip(*lists, strict=True)]


def main() -> int:
    """Print a row for each list; the first is expected to be the most diverse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("lists", type=Path, nargs=2)
    parser.add_argument("--record", action="store_true", help="append the output to RESULTS.md")
    args = parser.parse_args()
    references = args.reference.read_text(encoding="utf-8").splitlines()
    rows, pairwise = [], []
    for path in args.lists:
        found = ranks(path)
        pairwise.append(statistics.mean(bleu(a, b) for a, b in itertools.permutations(found, 2)))
        scores = ", ".join(f"{bleu(rank, references):.2f}" for rank in found)
        rows.append([path.stem, str(len(found)), f"{pairwise[-1]:.1f}", scores])
    header = ["list", "translations", "pairwise BLEU", "BLEU of each"]
    goals = [Goal("pairwise BLEU of the second list to the first", pairwise[1] / pairwise[0], 1.0)]
    return finish("Diversity of n-best lists", table(header, rows), goals, args.record)


if __name__ == "__main__":
    sys.exit(main())
