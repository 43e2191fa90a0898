"""R-Drop and minimum risk on real text, at equal processor time.

- R-Drop: few pairs, with `criterion.r_drop=5`, and without it with the same updates and with twice
  as many, because R-Drop reads each batch twice;
- minimum risk: the longer of these trainings with cross entropy, then a few updates of minimum
  risk, and about as much more processor time of cross entropy.

    python benchmarks/criterions_text.py --tsv lohelp.en-de.train.tsv --out runs/text --record

A finished training in `--out` is not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import RESULTS, Goal, Section, finish
from experiments import CACHE, fetch_text
from real_text import RealText, minutes, score_table

PAIRS = 2000
RISK = "{name: minimum_risk, candidates: 8, sharpness: 1.0, ce_weight: 0.3}"
FINE = (
    "train.init_checkpoint=best",
    "train.max_tokens=500",
    "optimizer={name: adam, lr: 2.0e-4}",
    "scheduler={name: constant, warmup_updates: 10}",
)


def r_drop(out: Path, text: Path, updates: int) -> Section:
    """Compare R-Drop with equal updates and with equal time."""
    lab = RealText(out, text, PAIRS)
    runs = {"plain": updates, "longer": 2 * updates, "r_drop": updates}
    for name, count in runs.items():
        _train(lab, name, count, *(["criterion.r_drop=5"] if name == "r_drop" else []))
    scored = lab.scored(list(runs))
    rows = {
        "plain": f"cross entropy, {updates:,} updates",
        "longer": f"cross entropy, {2 * updates:,} updates",
        "r_drop": f"R-Drop with weight 5, {updates:,} updates",
    }
    gain = scored["r_drop"].bleu - max(scored["plain"].bleu, scored["longer"].bleu)
    goal = Goal("BLEU gained by R-Drop over the better one without", gain, 0.0)
    return Section(f"R-Drop on {PAIRS:,} pairs", score_table(rows, scored), [goal])


def _train(lab: RealText, name: str, updates: int, *options: str) -> Path:
    every = f"train.validate_every={max(updates // 4, 1)}"
    return lab.train(name, updates, "scheduler.warmup_updates=50", every, *options)


def minimum_risk(out: Path, text: Path, updates: int, risk_updates: int) -> Section:
    """Continue a trained model with minimum risk, or with cross entropy."""
    lab = RealText(out, text, PAIRS)
    start = _train(lab, "longer", updates)
    further = (f"train.init_from={start}", *FINE)
    every = f"train.validate_every={risk_updates // 2}"
    lab.train("risk", risk_updates, *further, every, f"criterion={RISK}")
    per_update = minutes(lab.run("risk")) / risk_updates
    # an update of the start, whose batches are twice as large, costs twice as much
    more = max(round(risk_updates * per_update / (minutes(start) / updates / 2)), risk_updates)
    every = f"train.validate_every={more // 2}"
    lab.train("more", more, *further, every)
    scored = lab.scored(["longer", "risk", "more"])
    rows = {
        "longer": f"cross entropy, {updates:,} updates",
        "risk": f"then {risk_updates:,} updates of minimum risk",
        "more": f"or {more:,} more of cross entropy",
    }
    goals = [
        Goal("BLEU gained by minimum risk", scored["risk"].bleu - scored["longer"].bleu, 0.0),
        Goal(
            "BLEU of minimum risk above that of more cross entropy",
            scored["risk"].bleu - scored["more"].bleu,
            0.0,
        ),
    ]
    body = f"`criterion: {RISK}`\n\n{score_table(rows, scored)}"
    return Section(f"Minimum risk on {PAIRS:,} pairs", body, goals)


def main(argv: Sequence[str]) -> int:
    """Train what is missing, print, and record on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--tsv", type=Path, help="text to use instead of fetching one")
    parser.add_argument("--updates", type=int, default=300, help="of R-Drop")
    parser.add_argument("--risk-updates", type=int, default=24)
    parser.add_argument("--only", nargs="+", choices=("r_drop", "minimum_risk"))
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}")
    args = parser.parse_args(argv)
    text = fetch_text(CACHE, args.tsv)
    sections = []
    if args.only is None or "r_drop" in args.only:
        sections.append(r_drop(args.out, text, args.updates))
    if args.only is None or "minimum_risk" in args.only:
        sections.append(minimum_risk(args.out, text, 2 * args.updates, args.risk_updates))
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in sections)
    goals = [goal for section in sections for goal in section.goals]
    return finish("Criterions that generate or choose, on real text", body, goals, args.record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
