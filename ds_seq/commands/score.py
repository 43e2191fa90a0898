"""The command `ds-seq score`: publishable scores of translations, with confidence intervals.

Scores and signatures equal those that sacreBLEU's command prints for the same files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ds_seq.commands.arguments.score import build_parser
from ds_seq.commands.text_scores import COMET, chosen_metrics
from ds_seq.errors import UserError
from ds_seq.names import DEFAULT_METRICS, RESAMPLING_SEED
from ds_seq.scores.languages import language_warning
from ds_seq.scores.metric import Metric, from_sacrebleu
from ds_seq.scores.scoring import TOKENISED, CorpusScore, build_metric
from ds_seq.scores.significance import Resampling, score_systems
from ds_seq.text.lines import STANDARD, check_counts, read_lines

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class _Texts:
    """The texts to compare.

    Attributes:
        systems: lines of each system's translation, by path.
        references: lines of each reference, by path.
        source: lines of the source, for COMET; empty otherwise.
    """

    systems: dict[str, list[str]]
    references: dict[str, list[str]]
    source: list[str]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq score`; return the exit code."""
    args = build_parser().parse_intermixed_args(argv)
    systems, references = _resolve(args)
    _check(args, len(systems), len(references))
    texts = _read(systems, references, args.source)
    for path, lines in {**texts.systems, **texts.references}.items():
        for warning in suspicions(lines, tokenized=args.tokenized):
            print(f"ds-seq: warning: {path} {warning}", file=sys.stderr)
    for path, lines in texts.references.items():
        unsplit = None if args.tokenized else language_warning(lines, args.target_lang)
        if unsplit is not None:
            print(f"ds-seq: warning: {path} {unsplit} (--target-lang)", file=sys.stderr)
    seed = args.seed or RESAMPLING_SEED
    resampling = Resampling(args.confidence, args.paired, args.samples, seed)
    metrics = _metrics(args, texts.source)
    scores = score_systems(texts.systems, list(texts.references.values()), metrics, resampling)
    if args.json:
        print(json.dumps(_as_json(texts, scores, resampling), indent=2))
    elif len(scores) == 1:
        print(*next(iter(scores.values())), sep="\n")
    else:
        print(*_table(scores, resampling), sep="\n")
    return 0


def suspicions(lines: Sequence[str], *, tokenized: bool = False) -> list[str]:
    """Return warnings about a text that does not look ready for scoring.

    Args:
        lines: the text.
        tokenized: whether the text is tokenized on purpose.
    """
    warnings = []
    # in real text, one line in a hundred may contain such a mark
    marked = _count(r"▁|@@(?: |$)", lines)
    if marked * 100 > len(lines):
        warnings.append(
            f"has subword marks (▁ or @@) in {marked:,} of {len(lines):,} lines: "
            "join the pieces into words first"
        )
    split = _count(r" \.$| @-@ ", lines)
    if not tokenized and (split >= 100 or split * 2 > len(lines)):  # 100: as sacreBLEU
        warnings.append(
            f"looks tokenized ({split:,} of {len(lines):,} lines have ' .' at the end or ' @-@ '): "
            "use raw text, or the scores are not comparable to others"
        )
    return warnings


def _count(pattern: str, lines: Sequence[str]) -> int:
    search = re.compile(pattern).search
    return sum(search(line.rstrip()) is not None for line in lines)


def _resolve(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the paths of the systems and of the references."""
    systems, references = args.systems or [], args.reference or []
    if systems:
        references = [*args.text, *references]
    elif references and len(args.text) == 1:
        systems = args.text
    elif not references and len(args.text) == 2:
        systems, references = args.text[:1], args.text[1:]
    if not systems or not references:
        raise UserError(
            "give HYP REF, or HYP --reference R [R ...], or REF --systems A B [...] "
            "(texts without an option before --metrics, --systems and --reference)"
        )
    source = [args.source] if args.source else []
    duplicates = [
        path
        for paths in (systems, references)
        for number, path in enumerate(paths)
        if path in paths[:number]
    ]
    if duplicates:
        raise UserError(f"{duplicates[0]}: is given more than once")
    if [*systems, *references, *source].count(STANDARD) > 1:
        raise UserError(f"{STANDARD}: only one of the texts can be standard input")
    return systems, references


def _check(args: argparse.Namespace, num_systems: int, num_references: int) -> None:
    """Refuse options that cannot be combined."""
    metrics = args.metrics or ()
    if args.paired and num_systems == 1:
        raise UserError("--paired: compares systems; give two or more to --systems, baseline first")
    if not (args.paired or args.confidence) and (args.samples or args.seed):
        raise UserError("--samples, --seed: need --confidence or --paired; add one of them")
    if args.tokenized and metrics:
        raise UserError(
            "--tokenized: supports only BLEU, as other metrics need raw text; drop --metrics"
        )
    if COMET in metrics and (not args.source or num_references > 1):
        raise UserError("comet: needs exactly one reference and the source text; add --source FILE")
    if args.source and COMET not in metrics:
        raise UserError("--source: only used by `--metrics comet`; leave it out")


def _read(systems: list[str], references: list[str], source: str | None) -> _Texts:
    """Read all texts, which must have the same number of lines as the first reference."""
    texts = _Texts(
        {path: read_lines(path) for path in systems},
        {path: read_lines(path) for path in references},
        [] if source is None else read_lines(source),
    )
    name, first = next(iter(texts.references.items()))
    if not first:
        raise UserError(f"{name}: is empty; there is no text to score")
    for path, lines in [*texts.systems.items(), *texts.references.items()]:
        check_counts(lines, path, first, name)
    if source is not None:
        check_counts(texts.source, source, first, name)
    return texts


def _metrics(args: argparse.Namespace, source: Sequence[str]) -> list[Metric]:
    if args.tokenized:
        return [from_sacrebleu(TOKENISED, build_metric(TOKENISED, ""))]
    names, stemmer = args.metrics or DEFAULT_METRICS, not args.no_stemmer
    return chosen_metrics(names, args.target_lang, source, args.comet_model, stemmer=stemmer)


def _as_json(
    texts: _Texts, scores_by_system: Mapping[str, Sequence[CorpusScore]], resampling: Resampling
) -> dict[str, object]:
    return {
        "references": list(texts.references),
        "lines": len(next(iter(texts.references.values()))),
        "test": resampling.paired,
        "systems": [
            {
                "system": system,
                "scores": {
                    score.name: {
                        "name": score.label,
                        "value": score.value,
                        "signature": score.signature,
                        "mean": score.mean,
                        "ci": score.ci,
                        "p_value": score.p_value,
                    }
                    for score in scores
                },
            }
            for system, scores in scores_by_system.items()
        ],
    }


def _table(
    scores_by_system: Mapping[str, Sequence[CorpusScore]], resampling: Resampling
) -> list[str]:
    """Return the lines of a table of systems and metrics, then the signatures."""
    baseline, first = next(iter(scores_by_system.items()))
    rows = [("system", "metric", "score", "mean ± 95% CI", "p-value")]
    for number, scores in enumerate(zip(*scores_by_system.values(), strict=True)):
        for system, score in zip(scores_by_system, scores, strict=True):
            sure = "" if score.mean is None else f"{score.mean:.2f} ± {score.ci:.2f}"
            chance = "baseline" if resampling.paired and system == baseline else ""
            if score.p_value is not None:
                chance = f"{score.p_value:.4f}{' *' if score.p_value < _SIGNIFICANT else ''}"
            rows.append((system, first[number].label, f"{score.value:.2f}", sure, chance))
    shown = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in shown]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*shown, strict=True)
    ]
    if resampling.paired:
        lines += [
            "",
            f"p-value: paired {resampling.paired} against {baseline}; * below {_SIGNIFICANT}",
        ]
    return [*lines, "", *(f"{score.label}|{score.signature}" for score in first)]
