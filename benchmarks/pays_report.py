"""moe_vs_dense.py: tables and goals from its curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, Goal, Spread, finish, table
from curves import Curve, Point, curves_of, reach_ratio

DENSE, MOE = "dense", "MoE"
SHARES = (0.5, 0.75, 0.9, 0.95, 1.0)
_NAMES = {"bleu": "BLEU", "loss": "loss"}


def report(
    settings: Mapping[str, Any], points: Sequence[Point], picture: Path | None, record: bool
) -> int:
    """Print tables and goals, record them if requested, and return the exit status.

    Args:
        settings: settings of the record.
        points: validations of the record.
        picture: plot of the curves, if there is one.
        record: see `common.finish`.
    """
    pairs = [
        pair
        for pair in curves_of(points, settings["vocab_size"]).values()
        if DENSE in pair and MOE in pair
    ]
    if not pairs:
        print("no pair of runs was validated: give them more time")
        return 1
    goals = [
        Goal(
            f"{MOE} to {DENSE}, {axis} to {DENSE}'s best BLEU",
            statistics.median(_ratios(pairs, key, "bleu", 1.0)),
            1.0,
            "x",
            at_least=False,
        )
        for key, axis in (("update", "updates"), ("seconds", "training time"))
    ]
    body = f"{_systems(settings, pairs)}\n\n{_reach(pairs)}\n\n{_remarks(settings, pairs)}"
    if picture is not None and record:
        body += f"\n\n![validation BLEU]({picture.relative_to(RESULTS.parent).as_posix()})"
    return finish("Do experts pay off?", body, goals, record)


def _systems(settings: Mapping[str, Any], pairs: Sequence[Mapping[str, Curve]]) -> str:
    header = ["system", "parameters", "active", "tokens/s", "best BLEU", "at update"]
    header += ["after minutes", "last BLEU", "best loss", "validation, s"]
    rows = []
    for name in (DENSE, MOE):
        curves = [pair[name] for pair in pairs]
        best = [curve.best_bleu for curve in curves]
        last = [curve.points[-1] for curve in curves]
        everything = [point.valid_seconds for curve in curves for point in curve.points]
        rows.append(
            [
                name,
                f"{settings['parameters'][name]:,}",
                f"{settings['active'][name]:,}",
                _text([point.target_tokens / point.seconds for point in last], 0),
                _text([point.bleu for point in best], 2),
                _text([point.update for point in best], 0),
                _text([point.seconds / 60 for point in best], 1),
                _text([point.bleu for point in last], 2),
                _text([curve.best_loss.loss for curve in curves], 3),
                f"{statistics.median(everything):.1f}",
            ]
        )
    return table(header, rows)


def _reach(pairs: Sequence[Mapping[str, Curve]]) -> str:
    """Return the share of the dense run's updates and time needed to reach several levels."""
    header = [f"{MOE} to {DENSE}, to reach", *(f"{share:.0%} of its best" for share in SHARES)]
    rows = [
        [
            f"{_NAMES[figure]}: {axis}",
            *(_text(_ratios(pairs, key, figure, share), 2) for share in SHARES),
        ]
        for figure in _NAMES
        for key, axis in (("update", "updates"), ("seconds", "training time"))
    ]
    return table(header, rows)


def _ratios(
    pairs: Sequence[Mapping[str, Curve]], axis: str, figure: str, share: float
) -> list[float]:
    return [
        reach_ratio(pair[MOE].against(axis, figure), pair[DENSE].against(axis, figure), share)
        for pair in pairs
    ]


def _remarks(settings: Mapping[str, Any], pairs: Sequence[Mapping[str, Curve]]) -> str:
    moe = settings["experiments"][MOE]["model"]["moe"]
    updates = _text([pair[DENSE].points[-1].update for pair in pairs], 0)
    tokens = _text(
        [p.target_tokens / p.update for p in (pair[DENSE].points[-1] for pair in pairs)], 0
    )
    layers = "the listed layers" if moe.get("layers") else f"one layer in {moe['every']}"
    runs = "one pair of runs"
    if len(pairs) > 1:
        runs = f"medians (and extremes) of {len(pairs)} pairs of runs"
    return (
        f"{settings['title']}; {settings['text']}, {updates} updates of {tokens} target tokens, "
        f"{moe['num_experts']} experts in {layers}, top-{moe['top_k']}, {settings['threads']} "
        f"threads; {runs}, in turns of {settings['slice']} updates. "
        f"BLEU of {settings['valid_sentences']} sentences. Time is that of training, without "
        "validation. A ratio below 1 is in favor of the experts, inf means that they never got "
        "there; between two validations the curves are linear. Trained by "
        f"`{settings['run']}`."
    )


def _text(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return "never" if math.isinf(values[0]) else f"{values[0]:,.{digits}f}"
    return Spread.of(values).text(digits)
