"""Held-out texts of several language pairs: their tags, their metrics and averages of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple

from ds_seq.names import ScoreAverage
from ds_seq.scores.metric import Metric, measure
from ds_seq.text.normalize import has_text

PAIRS = "language_pairs"
"""Name of the figure that lists the language pairs with figures of their own."""


class HeldOut(NamedTuple):
    """What a held-out text is, besides its files."""

    languages: tuple[str, str]
    """Language codes of source and target."""
    tags: tuple[str, ...] = ()
    """Tags at the start of each source."""
    target_tags: tuple[str, ...] = ()
    """Tags at the start of each translation."""

    def tagged(self, sources: Sequence[str]) -> list[str]:
        """Return sources as the model reads them; those without text stay empty."""
        tags = "".join(self.tags)
        return [f"{tags} {line}" if tags and has_text(line) else line for line in sources]

    def untagged(self, translations: Sequence[str]) -> list[str]:
        """Return translations without the tags at their start."""
        if not self.target_tags:
            return list(translations)
        return [_without(line, self.target_tags) for line in translations]


def _without(line: str, tags: Sequence[str]) -> str:
    for tag in tags:
        line = line.removeprefix(tag).lstrip(" ")
    return line


class Scored(NamedTuple):
    """Translations of a text, with its references."""

    name: str
    text: HeldOut
    translations: Sequence[str]
    references: Sequence[str]


def figures_by_text(
    scored: Sequence[Scored], metrics_in: Callable[[str], Sequence[Metric]]
) -> dict[str, float | str]:
    """Score each of several texts on its own, and each language pair if it has several texts.

    Args:
        scored: the texts.
        metrics_in: returns the metrics for a target language.

    Returns:
        `<metric>/<text>`, perhaps `<metric>/<source>-<target>`, and their names as `PAIRS`.
    """
    present = [each for each in scored if each.references]
    if len(scored) < 2:
        return {}
    figures: dict[str, float | str] = {}
    for each in present:
        figures |= _measured(each.name, each.text.languages[1], [each], metrics_in)
    by_pair: dict[tuple[str, str], list[Scored]] = {}
    for each in present:
        by_pair.setdefault(each.text.languages, []).append(each)
    if 1 < len(by_pair) < len(present):
        names = ["-".join(pair) for pair in by_pair]
        for name, (pair, texts) in zip(names, by_pair.items(), strict=True):
            figures |= _measured(name, pair[1], texts, metrics_in)
        figures[PAIRS] = " ".join(names)
    return figures


def _measured(
    name: str,
    language: str,
    texts: Sequence[Scored],
    metrics_in: Callable[[str], Sequence[Metric]],
) -> dict[str, float | str]:
    translations = list(chain.from_iterable(each.translations for each in texts))
    references = list(chain.from_iterable(each.references for each in texts))
    results = measure(metrics_in(language), translations, references)
    return {f"{result.name}/{name}": result.value for result in results}


def averaged(
    figures: Mapping[str, Any], metrics: Sequence[Metric], average: ScoreAverage
) -> dict[str, Any]:
    """Return figures in which each metric is the average that one wants of several texts.

    Args:
        figures: result of `Task.evaluate`; without figures of several texts, nothing changes.
        metrics: the metrics.
        average: `pooled` scores all texts as one, `texts` is the mean over the texts, `pairs` the
            mean over language pairs.
    """
    result = dict(figures)
    pairs = str(figures.get(PAIRS, "")).split()
    for metric in metrics if average != "pooled" else ():
        each = {
            key.removeprefix(f"{metric.name}/"): value
            for key, value in figures.items()
            if key.startswith(f"{metric.name}/")
        }
        of_pairs = average == "pairs" and pairs
        values = [v for name, v in each.items() if (name in pairs) == bool(of_pairs)]
        if values:
            result[metric.name] = fmean(values)
            key = f"{metric.name}_signature"
            result[key] = f"mean of {len(values)} {average}|{figures.get(key, '')}"
    return result
