"""experts_pay.py: curves of its runs, tables and goals, and pictures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import Goal, table
from curve_plot import load_matplotlib
from curves import first_reach
from experts_pay_setup import DENSE, MOE

SHARE = 0.6
"""Share of the dense run's updates in which experts should get as far."""
_TAIL = 0.5


class Validation(NamedTuple):
    """One validation of one run."""

    update: int
    tokens: float
    """Target tokens trained on so far."""
    averaged: float
    """Nats per target token of averaged weights."""
    raw: float
    """The same of the weights themselves."""
    by_text: dict[str, float]
    entropy: dict[str, float]
    """Mean entropy of the router in nats, by layer."""
    spread: dict[str, float]
    """Standard deviation of the experts' load divided by its mean, by layer."""


Loss = Callable[[Validation], float]
"""A loss in nats per target token."""
Curves = dict[str, list[Validation]]
"""The validations of each run by its name, in order."""


def read_curves(runs: Path) -> Curves:
    """Return the curves of all runs of a folder that were validated."""
    curves = {path.parent.name: _read(path) for path in sorted(runs.glob("*/metrics.jsonl"))}
    return {name: curve for name, curve in curves.items() if curve}


def _read(path: Path) -> list[Validation]:
    tokens, found = 0.0, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            tokens += record["tokens"]
        elif record["kind"] == "valid" and record["update"]:
            found[record["update"]] = _validation(record, tokens)
    return list(found.values())


def _validation(record: Mapping[str, Any], tokens: float) -> Validation:
    layers = record.get("layers", [])
    per_layer = [
        {name: record[f"moe/layer{number}/{figure}"] for number, name in enumerate(layers)}
        for figure in ("entropy", "load_cv")
    ]
    texts = {
        key.removeprefix("loss/").removesuffix(".tsv"): value
        for key, value in record.items()
        if key.startswith("loss/")
    }
    raw = record.get("raw_loss", record["nll"])
    return Validation(record["update"], tokens, record["nll"], raw, texts, *per_layer)


def averaged(validation: Validation) -> float:
    """Return the loss of averaged weights."""
    return validation.averaged


def raw(validation: Validation) -> float:
    """Return the loss of the weights themselves."""
    return validation.raw


def of_text(name: str) -> Loss:
    """Return the loss of averaged weights on one text, as a function of a validation."""
    return lambda validation: validation.by_text[name]


def reach(dense: Sequence[Validation], moe: Sequence[Validation], loss: Loss) -> dict[int, float]:
    """Return, for updates of the dense run, the share of them that experts need.

    Args:
        dense: a curve.
        moe: the other one; between two validations it is taken as linear.
        loss: what is compared.

    Returns:
        Shares by update, for validations with the lowest loss so far; NaN where experts have not
        got there.
    """
    curve = [(float(each.update), -loss(each)) for each in moe]
    shares, best = {}, math.inf
    for each in dense:
        if loss(each) < best and -loss(each) >= curve[0][1]:
            best = loss(each)
            shares[each.update] = first_reach(curve, -best) / each.update
    return shares


def last_share(dense: Sequence[Validation], moe: Sequence[Validation], loss: Loss) -> float:
    """Return the share at the lowest dense loss that experts have reached; infinity: none."""
    known = [share for share in reach(dense, moe, loss).values() if not math.isnan(share)]
    return known[-1] if known else math.inf


def slope(curve: Sequence[Validation]) -> float:
    """Return d loss / d ln(tokens) of averaged weights over the last half of a run, by least
    squares; negative."""
    tail = [each for each in curve if each.update >= _TAIL * curve[-1].update]
    xs = [math.log(each.tokens) for each in tail]
    return statistics.linear_regression(xs, [each.averaged for each in tail]).slope


def pair(curves: Curves, schedule: str, seed: int) -> tuple[list[Validation], list[Validation]]:
    """Return the curves of a pair of runs."""
    return curves[f"{schedule}-{DENSE}-{seed}"], curves[f"{schedule}-{MOE}-{seed}"]


def seeds_of(curves: Curves, schedule: str) -> list[int]:
    """Return the seeds of which both runs were validated."""
    names = [name for name in curves if name.startswith(f"{schedule}-{DENSE}-")]
    seeds = sorted(int(name.rpartition("-")[2]) for name in names)
    return [seed for seed in seeds if f"{schedule}-{MOE}-{seed}" in curves]


def report(curves: Curves, cost: float | None) -> tuple[str, list[Goal]]:
    """Return tables and goals.

    Args:
        curves: the curves of all runs.
        cost: processor time of an update with experts to one without; None if not measured.
    """
    seeds = seeds_of(curves, "constant")
    parts = [_pair_report(*pair(curves, "constant", seed), seed) for seed in seeds]
    last = [last_share(*pair(curves, "constant", seed), averaged) for seed in seeds]
    goals = []
    if last:
        share = statistics.median(last)
        goals.append(Goal("updates to the dense model's best loss", share, SHARE, "x", False))
        if cost is not None:
            name = "processor time to it"
            goals.append(Goal(name, share * cost, 0.9, "x", at_least=False))
    ends = [pair(curves, "decay", seed) for seed in seeds_of(curves, "decay")]
    if ends:
        gaps = [moe[-1].averaged - dense[-1].averaged for dense, moe in ends]
        shares = [moe[-1].update / dense[-1].update for dense, moe in ends]
        name = f"loss of experts that end at {max(shares):.2f} of the updates, less the dense one"
        goals.append(Goal(name, max(gaps), 0.0, " nats", at_least=False))
    return "\n\n".join(parts), goals


def _pair_report(dense: Sequence[Validation], moe: Sequence[Validation], seed: int) -> str:
    shares, of_raw = reach(dense, moe, averaged), reach(dense, moe, raw)
    by_update = {each.update: each for each in moe}
    rows = []
    for each in dense:
        other = by_update.get(each.update)
        gap = math.nan if other is None else each.averaged - other.averaged
        ratios = [found.get(each.update, math.nan) for found in (shares, of_raw)]
        figures = map(_text, (each.averaged, gap, *ratios))
        rows.append([f"{each.update:,}", f"{each.tokens / 1e6:.1f}", *figures])
    header = ["update", "M tokens", "dense nll", "gap", "r", "r, raw weights"]
    both = [each for each in dense if each.update in by_update]
    last, twin = both[-1], by_update[both[-1].update]
    steep = slope(both)
    gap = last.averaged - twin.averaged
    texts = [
        [
            name,
            *map(_text, (nll, twin.by_text[name], nll - twin.by_text[name])),
            _text(last_share(dense, moe, of_text(name))),
        ]
        for name, nll in last.by_text.items()
    ]
    first = moe[0]
    layers = [
        [name, *map(_text, (first.entropy[name], twin.entropy[name], twin.spread[name]))]
        for name in twin.entropy
    ]
    return "\n\n".join(
        [
            f"Seed {seed}:\n\n{table(header, rows)}",
            f"At update {last.update:,}: gap {gap:.3f} nats, slope {steep:.2f} nats per e-fold of "
            f"tokens over the last half, so r by the slope is {math.exp(gap / steep):.2f}.",
            table(["text", "dense nll", "with experts", "gap", "r"], texts),
            table(["layer", f"entropy at {first.update:,}", "at the end", "load cv"], layers),
        ]
    )


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def plot(curves: Curves, path: Path) -> None:
    """Plot losses over tokens, shares over the dense loss, and entropies of the routers."""
    picture = load_matplotlib().Figure(figsize=(11, 3.6), layout="constrained")
    losses, shares, entropies = picture.subplots(1, 3)
    for seed in seeds_of(curves, "constant"):
        dense, moe = pair(curves, "constant", seed)
        for name, curve, color in ((DENSE, dense, "#4c72b0"), (MOE, moe, "#dd8452")):
            tokens = [each.tokens / 1e6 for each in curve]
            label = f"{name}, averaged"
            losses.plot(tokens, list(map(averaged, curve)), color=color, label=label)
            losses.plot(
                tokens, list(map(raw, curve)), color=color, linestyle=":", label=f"{name}, raw"
            )
        at = {each.update: each.averaged for each in dense}
        reached = reach(dense, moe, averaged)
        shares.plot([at[update] for update in reached], list(reached.values()), marker=".")
        for name in moe[-1].entropy:
            steps = [each.update for each in moe]
            entropies.plot(steps, [each.entropy[name] for each in moe], label=name)
    losses.set(xscale="log", xlabel="million target tokens", ylabel="nats per target token")
    shares.axhline(SHARE, color="gray", linestyle=":")
    shares.invert_xaxis()
    shares.set(xlabel="nll of the dense model", ylabel="share of its updates that experts need")
    entropies.set(xlabel="update", ylabel="entropy of routers, nats")
    losses.legend(frameon=False, fontsize=8)
    entropies.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
