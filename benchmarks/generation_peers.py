"""generation.py: one thread of ds_seq and of other toolkits, with the same weights and sentences.

fairseq, CTranslate2 and transformers search by the same rules as ds_seq. JoeyNMT computes all
earlier tokens again in each step, divides by GNMT's length penalty and ends when all hypotheses
have ended; eole ends with the first hypothesis that is the best when it ends.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common import Goal, Section, Spread, table
from fairseq_venv import FAIRSEQ
from generation_causes import REAL
from generation_widths import OTHER, OURS, Case, measured
from parity_sides import Hypothesis
from peer_venvs import EOLE, HUGGING_FACE, JOEYNMT, make_venv

PEERS = {"fairseq": FAIRSEQ, "Hugging Face": HUGGING_FACE, "JoeyNMT": JOEYNMT, "eole": EOLE}
OTHER_SEARCHES = ("JoeyNMT", "eole")  # whose translations may differ for a reason of their own
GOAL = 2.0


def peers_section(
    case: Case,
    beam: int,
    rounds: int,
    folder: Path,
    cache: Path,
    bleu: Callable[[list[Hypothesis]], float],
) -> Section:
    """Return the section.

    Args:
        case: the model, whose job has the folder of an export to Hugging Face and `sizes`.
        beam: beam width.
        rounds: number of rounds, in each of which all systems translate everything.
        folder: existing folder for files of the children.
        cache: folder of the environments.
        bleu: translations -> BLEU.
    """
    interpreters = {
        name: str(make_venv(peer, cache / venv_name(name))) for name, peer in PEERS.items()
    }
    systems = {OURS: sys.executable, OTHER: sys.executable, **interpreters}
    blocks, versions, found = measured(case, beam, rounds, folder, systems)
    seconds = {name: [block.cpu_seconds for block in blocks[name]] for name in systems}
    ratios = {name: _ratio(seconds[OURS], seconds[name]) for name in systems}
    rows = []
    for name in systems:
        same = sum(a.tokens == b.tokens for a, b in zip(found[OURS], found[name], strict=True))
        tokens = sum(len(one.tokens) for one in found[name])
        rows.append(
            [
                name,
                f"{case.count / statistics.median(seconds[name]):,.1f}",
                ratios[name].text(2),
                versions[name].rpartition("batches of ")[2],
                f"{tokens / case.count:.2f}",
                f"{same} of {case.count}",
                f"{bleu(found[name]):.2f}",
            ]
        )
    header = ["system", "sentences per CPU second", f"{OURS} is faster by", "batches"]
    header += ["tokens per translation", f"equal to {OURS}", "BLEU"]
    notes = [
        f"{name}: {one}"
        for name in systems
        if name not in (OURS, *OTHER_SEARCHES)
        for one in case.differences(beam, found[OURS], found[name])
    ]
    body = (
        f"{table(header, rows)}\n\n{case.name}, beam {beam}, float32, one thread; medians (and "
        f"extremes) of {rounds} rounds. "
        + "; ".join(versions[name].partition(", batches")[0] for name in systems)
        + "."
        + "".join(f"\n- {note}" for note in notes)
    )
    goals = [
        Goal(f"{OURS} to {name}, one thread, beam {beam}", ratios[name].median, GOAL, "x")
        for name in PEERS
    ]
    real = sum(note.endswith(REAL) for note in notes)
    goals.append(Goal("differences without a cause", real, 0, at_least=False))
    return Section("Other toolkits, one thread", body, goals)


def venv_name(peer: str) -> str:
    """Return the name of the folder of a peer's environment."""
    return f"{peer.lower().replace(' ', '-')}-venv"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])
