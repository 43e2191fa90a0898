"""fairseq_parity.py: which translations differ, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from parity_sides import Answer, Fairseq, Hypothesis, Ours, Setting, Subject

NEAR = 1e-4
NEAR_TIE = "near-tie"
ROUNDING = "rounding"
BEGIN = "begin symbol"
REAL = "REAL"


@dataclass(frozen=True)
class Difference:
    """A sentence that the two sides translate differently.

    Attributes:
        setting: setting of the search.
        sentence: number of the sentence.
        ours: our hypothesis with our score.
        theirs: fairseq's hypothesis with fairseq's score.
        ours_by_fairseq: fairseq's score of ours.
        theirs_by_us: our score of theirs.
        cause: `NEAR_TIE`: the two scores are closer than `NEAR`. `ROUNDING`: with the models in
            float64 both sides find the same, so there was a near-tie during the search, where a
            hypothesis left the beam. `BEGIN`: they find the same when fairseq may not generate
            the begin symbol. `REAL`: none of these.
    """

    setting: Setting
    sentence: int
    ours: Hypothesis
    theirs: Hypothesis
    ours_by_fairseq: float
    theirs_by_us: float
    cause: str = REAL

    @property
    def gap(self) -> float:
        """The larger of the two sides' differences between the two scores."""
        by_us = abs(self.ours.score - self.theirs_by_us)
        return max(by_us, abs(self.theirs.score - self.ours_by_fairseq))

    def __str__(self) -> str:
        beam, length_penalty = self.setting
        return (
            f"beam {beam}, lenpen {length_penalty}, sentence {self.sentence}: {self.cause}; "
            f"ours: {self.ours.score:.6f} by us, {self.ours_by_fairseq:.6f} by fairseq; "
            f"theirs: {self.theirs_by_us:.6f} by us, {self.theirs.score:.6f} by fairseq"
        )


@dataclass(frozen=True)
class Comparison:
    """Outcome of one setting.

    Attributes:
        setting: setting of the search.
        identical: number of sentences with the same best hypothesis.
        total: number of sentences.
        largest: largest difference of scores among the identical ones.
        differing: numbers of the other sentences.
    """

    setting: Setting
    identical: int
    total: int
    largest: float
    differing: list[int]


def compare(setting: Setting, ours: Answer, theirs: Answer) -> Comparison:
    """Compare the best hypotheses."""
    pairs = [(a[0], b[0]) for a, b in zip(ours, theirs, strict=True)]
    distances = [abs(a.score - b.score) for a, b in pairs if a.tokens == b.tokens]
    differing = [i for i, (a, b) in enumerate(pairs) if a.tokens != b.tokens]
    return Comparison(setting, len(distances), len(pairs), max(distances, default=0.0), differing)


def explain(
    subject: Subject,
    fairseq: Fairseq,
    sources: Sequence[list[int]],
    comparison: Comparison,
    ours: Answer,
    theirs: Answer,
) -> list[Difference]:
    """Return every difference of a setting with its cause."""
    setting, numbers = comparison.setting, comparison.differing
    if not numbers:
        return []
    chosen = [sources[i] for i in numbers]
    by_fairseq = fairseq.force([(sources[i], ours[i][0].tokens) for i in numbers])
    single, double = Ours(subject), Ours(subject, double=True)
    exact = _same(double.search(chosen, setting), fairseq.search(chosen, [setting], double=True)[0])
    suppressed = fairseq.search(chosen, [setting], without_begin=True)[0]
    without_begin = _same([ours[i] for i in numbers], suppressed)
    differences = []
    for place, i in enumerate(numbers):
        mine, other = ours[i][0], theirs[i][0]
        difference = Difference(
            setting,
            i,
            mine,
            other,
            _normalized(by_fairseq[place], setting),
            _normalized(single.force(sources[i], other.tokens), setting),
        )
        causes = {
            NEAR_TIE: difference.gap < NEAR,
            ROUNDING: exact[place],
            BEGIN: without_begin[place],
        }
        cause = next((name for name, applies in causes.items() if applies), REAL)
        differences.append(dataclasses.replace(difference, cause=cause))
    return differences


def count_causes(differences: Sequence[Difference]) -> Counter[str]:
    """Count differences by cause."""
    return Counter(difference.cause for difference in differences)


def _same(ours: Answer, theirs: Answer) -> list[bool]:
    return [a[0].tokens == b[0].tokens for a, b in zip(ours, theirs, strict=True)]


def _normalized(token_scores: Sequence[float], setting: Setting) -> float:
    total: float = sum(token_scores)
    return total / len(token_scores) ** setting.length_penalty
