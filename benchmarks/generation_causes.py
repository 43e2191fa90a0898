"""generation.py: why translations of two systems differ, and BLEU of both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import sacrebleu
from parity_sides import Hypothesis, Ours, Setting, Subject

from ds_seq.runs.card import LoadedRun

MOST = 60  # tokens per translation: more than any of these needs
NEAR = 1e-3
NEAR_TIE, ROUNDING, LIMIT, REAL = "near-tie", "rounding", "limit", "REAL"


def bleu_of(run: LoadedRun, found: Sequence[Hypothesis], references: Sequence[str]) -> float:
    """Return BLEU of translations."""
    lines = [run.tokenizers.target.decode(one.tokens) for one in found]
    return float(sacrebleu.corpus_bleu(lines, [list(references)]).score)


def differences(
    run: LoadedRun,
    sources: list[list[int]],
    beam: int,
    ours: list[Hypothesis],
    theirs: list[Hypothesis],
) -> list[str]:
    """Return the sentences that another system translates differently, and why."""
    subject = Subject(run.model, run.model_config, run.tokenizers.size, MOST)
    single, found = Ours(subject), []
    double = None
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine.tokens == other.tokens:
            continue
        double = double or Ours(subject, double=True)
        source = [*sources[number], run.tokenizers.symbols.eos]
        score = statistics.mean(single.force(source, other.tokens))
        exact = double.search([source], Setting(beam, 1.0))[0][0].tokens
        cause = REAL
        if abs(score - mine.score) < NEAR:
            cause = NEAR_TIE
        elif exact == other.tokens:
            cause = ROUNDING
        elif len(other.tokens) > MOST:
            cause = LIMIT
        found.append(
            f"sentence {number}: our score of ours {mine.score:.6f}, of theirs {score:.6f}; {cause}"
        )
    return found
