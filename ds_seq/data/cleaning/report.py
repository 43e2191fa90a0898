"""What cleaning has dropped: counts by corpus and reason, and examples.

The sum is always right: the pairs of a corpus are those that are kept and those with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ds_seq import files
from ds_seq.data.cleaning.options import REASONS
from ds_seq.errors import escaped

MOST_EXAMPLES = 20
_MOST_CHARS = 300
_MASK = (1 << 64) - 1


class Example(NamedTuple):
    """A dropped pair.

    Attributes:
        rank: a random number of the pair; the smallest ones are shown.
        input: number of its pair of files in its corpus.
        line: its line (or segment) there.
        source: its source, perhaps shortened.
        target: its target, perhaps shortened.
    """

    rank: int
    input: int
    line: int
    source: str
    target: str

    @classmethod
    def of(cls, corpus: int, pair: int, where: tuple[int, int], sides: tuple[str, str]) -> Example:
        """Return an example.

        Args:
            corpus: number of the corpus.
            pair: number of the pair in the corpus.
            where: number of its pair of files, and its line.
            sides: source and target.
        """
        source, target = (
            text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..." for text in sides
        )
        return cls(_mixed((corpus << 44) + pair), *where, source, target)


def _mixed(number: int) -> int:
    """Return a hash of a number (the last step of SplitMix64)."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


class Examples(dict[str, list[Example]]):
    """The examples with the smallest ranks by reason.

    So they are drawn from the whole text, and are the same in whatever order it is read.
    """

    def add(self, reason: str, example: Example) -> bool:
        """Add an example if its rank is small enough; return whether it is."""
        known = self.setdefault(reason, [])
        if len(known) == MOST_EXAMPLES and example >= known[-1]:
            return False
        known.append(example)
        known.sort()
        del known[MOST_EXAMPLES:]
        return True

    def update_from(self, others: Mapping[str, Iterable[Example]]) -> Examples:
        """Add examples; return those that are small enough so far."""
        new = Examples()
        for reason, examples in others.items():
            for example in examples:
                if self.add(reason, example):
                    new.setdefault(reason, []).append(example)
        return new


@dataclass
class CorpusReport:
    """Figures of a corpus: number of pairs, of dropped ones by reason, and examples of these.

    Attributes:
        name: its name.
        inputs: its pairs of files.
        units: what the pairs of each are numbered by, `line` or `segment`.
        total: number of its pairs.
        dropped: number of dropped pairs by reason.
        examples: some of them.
    """

    name: str
    inputs: Sequence[tuple[str, str]]
    units: Sequence[str]
    total: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    examples: Examples = field(default_factory=Examples)

    @property
    def kept(self) -> int:
        """Number of pairs that were written."""
        return self.total - sum(self.dropped.values())

    def _as_json(self) -> dict[str, Any]:
        examples = {
            reason: [
                {
                    "file": self.inputs[each.input][0],
                    self.units[each.input]: each.line,
                    "source": each.source,
                    "target": each.target,
                }
                for each in sorted(self.examples[reason], key=lambda one: (one.input, one.line))
            ]
            for reason in self.dropped
            if reason in self.examples
        }
        return {
            "name": self.name,
            "total": self.total,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "examples": examples,
        }


@dataclass
class CleanReport:
    """Total number of pairs, and the number of dropped pairs for each reason."""

    total: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    corpora: tuple[CorpusReport, ...] = ()

    @classmethod
    def of(cls, corpora: Sequence[CorpusReport]) -> CleanReport:
        """Return the sum of the reports of all corpora."""
        report = cls(dropped={}, corpora=tuple(corpora))
        for corpus in corpora:
            report.total += corpus.total
            for reason, number in corpus.dropped.items():
                report.dropped[reason] = report.dropped.get(reason, 0) + number
        report.dropped |= {name: 0 for name in REASONS if name not in report.dropped}
        return report

    @property
    def kept(self) -> int:
        """Number of pairs that were written."""
        return self.total - sum(self.dropped.values())

    def summary(self) -> dict[str, Any]:
        """Return the sums alone."""
        return {"kept": self.kept, "total": self.total, "dropped": dict(self.dropped)}

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        corpora = [corpus._as_json() for corpus in self.corpora]
        content = {**self.summary(), "corpora": corpora}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """Return the whole report as text: a table, then examples."""
        lines = []
        for corpus in self.corpora:
            lines.append(f"{corpus.name}: kept {corpus.kept:,} of {corpus.total:,} pairs")
            for reason, number in corpus.dropped.items():
                lines.append(f"    dropped {number:>12,}  {reason}")
        for corpus in self.corpora:
            for reason, examples in corpus._as_json()["examples"].items():
                count = corpus.dropped[reason]
                lines += [
                    "",
                    f"{corpus.name}, {reason}: {len(examples)} of {count:,} dropped pairs",
                ]
                for example in examples:
                    if "line" in example:
                        lines.append(f"  {example['file']}:{example['line']}")
                    else:
                        lines.append(f"  {example['file']}: segment {example['segment']}")
                    lines += [f"    {escaped(example[side])}" for side in ("source", "target")]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write the report as JSON to `path`, and as text to the same name with `.txt`.

        Raises:
            UserError: it cannot be written.
        """
        files.write_text(path, self.to_json())
        files.write_text(path.with_suffix(".txt"), self.to_text())
