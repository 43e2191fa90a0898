"""Translations of a validation as text, and the sentences in such a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SOURCE, _TRANSLATION, _REFERENCE = "source       ", "translation  ", "reference    "


class Sample(NamedTuple):
    """A sentence, its translation, and its reference if there is one."""

    source: str
    translation: str
    reference: str | None


def format_samples(
    sources: Sequence[str],
    translations: Sequence[str],
    references: Sequence[str] | None,
    num_samples: int,
) -> str:
    """Format some sentences, evenly spaced in the text, with translation and reference."""
    count = min(num_samples, len(sources))
    samples = []
    for i in (len(sources) * n // count for n in range(count)):
        samples += [f"{_SOURCE}{sources[i]}", f"{_TRANSLATION}{translations[i]}"]
        if references is not None:
            samples.append(f"{_REFERENCE}{references[i]}")
        samples.append("")
    return "\n".join(samples[:-1])


def read_samples(text: str) -> list[Sample]:
    """Return what `format_samples` has written; lines that it does not write are left out."""
    samples: list[Sample] = []
    source: str | None = None
    for line in text.split("\n"):
        if line.startswith(_SOURCE):
            source = line.removeprefix(_SOURCE)
        elif line.startswith(_TRANSLATION) and source is not None:
            samples.append(Sample(source, line.removeprefix(_TRANSLATION), None))
            source = None
        elif line.startswith(_REFERENCE) and samples and samples[-1].reference is None:
            samples[-1] = samples[-1]._replace(reference=line.removeprefix(_REFERENCE))
    return samples
