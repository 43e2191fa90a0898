"""Scores of translations, from any system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ds_seq.commands.arguments.score import COMET_MODEL
from ds_seq.commands.text_scores import COMET, chosen_metrics
from ds_seq.errors import UserError
from ds_seq.names import DEFAULT_METRICS, PAIRED_TESTS, PairedTestName
from ds_seq.scores.metric import Metric
from ds_seq.scores.scoring import CorpusScore, check_pairs
from ds_seq.scores.significance import Resampling, score_systems


def score_translations(
    translations: Sequence[str],
    references: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    target_lang: str = "",
    source: Sequence[str] = (),
    confidence: bool = False,
    comet_model: str = COMET_MODEL,
) -> list[CorpusScore]:
    """Score detokenized translations against raw text, like `ds-seq score`.

    Post, 2018, "A Call for Clarity in Reporting BLEU Scores", arXiv:1804.08771.

    Args:
        translations: (N) translations.
        references: (N) references.
        metrics: `bleu`, `chrf`, `chrf++`, `ter`, `rouge` and its kinds, `comet`, or
            `package.module:Name`; None: BLEU and chrF.
        target_lang: language code, for the tokenization of Chinese, Japanese and Korean.
        source: (N) sources, for COMET only.
        confidence: whether to compute 95% intervals by bootstrap resampling.
        comet_model: name or path of COMET's model.

    Returns:
        A score for each metric, with its signature; BLEU, chrF and TER from 0 to 100.

    Raises:
        UserError: there is no text, numbers of lines differ, or a metric does not exist or needs a
            package that is not installed.
    """
    check_pairs(translations, references)
    systems, chosen = {"": translations}, _metrics(metrics, target_lang, source, comet_model)
    return score_systems(systems, [references], chosen, Resampling(confidence))[""]


def compare_systems(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    target_lang: str = "",
    source: Sequence[str] = (),
    resampling: PairedTestName = PAIRED_TESTS[0],
    comet_model: str = COMET_MODEL,
) -> dict[str, list[CorpusScore]]:
    """Compare systems with the first one, like `ds-seq score --systems ... --paired`.

    Koehn, 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Riezler and
    Maxwell, 2005, for approximate randomization.

    Args:
        systems: (N) translations of each system, the baseline first; two or more.
        references: (N) references.
        metrics: see `score_translations`, also for the other arguments.
        target_lang: language code of the translations.
        source: (N) sources, for COMET only.
        resampling: paired test.
        comet_model: name or path of COMET's model.

    Returns:
        Scores of each system; those of all but the first have `p_value`.

    Raises:
        UserError: see `score_translations`; or there is one system only.
    """
    if len(systems) < 2:
        raise UserError("systems: give two or more, the baseline first")
    for translations in systems.values():
        check_pairs(translations, references)
    chosen = _metrics(metrics, target_lang, source, comet_model)
    return score_systems(systems, [references], chosen, Resampling(paired=resampling))


def _metrics(
    chosen: Sequence[str] | None, target_lang: str, source: Sequence[str], comet_model: str
) -> list[Metric]:
    names = DEFAULT_METRICS if chosen is None else chosen
    if isinstance(names, str):
        names = [names]
    if (COMET in names) != bool(source):
        raise UserError("source: is for the metric comet, which needs it; give both or neither")
    return chosen_metrics(names, target_lang, source, comet_model)
