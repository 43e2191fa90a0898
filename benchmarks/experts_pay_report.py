"""experts_pay.py: curves of its runs, tables and goals, and pictures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import Goal, table
from curve_plot import load_matplotlib
from curves import first_reach
from experts_pay_setup import DECAY, DENSE, MOE

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


class Pair(NamedTuple):
    """The curves of two runs with one seed and one schedule."""

    dense: list[Validation]
    moe: list[Validation]

    @property
    def share(self) -> float:
        """Updates of the run with experts divided by those of the dense run."""
        return self.moe[-1].update / self.dense[-1].update

    @property
    def gap(self) -> float:
        """Loss of the dense run at its end, less that of experts at theirs."""
        return self.dense[-1].averaged - self.moe[-1].averaged


def pair(curves: Curves, schedule: str, seed: int) -> Pair:
    """Return the curves of a pair of runs."""
    return Pair(curves[f"{schedule}-{DENSE}-{seed}"], curves[f"{schedule}-{MOE}-{seed}"])


def pairs(curves: Curves) -> Iterator[Pair]:
    """Yield all pairs of runs, of both schedules."""
    for schedule in ("constant", "decay"):
        for seed in seeds_of(curves, schedule):
            yield pair(curves, schedule, seed)


def steady(curves: Curves, seed: int) -> Pair | None:
    """Return a pair of runs while their learning rate is constant; None if there is none.

    It is the constant pair, or else the start of the pair whose learning rate falls.
    """
    if seed in seeds_of(curves, "constant"):
        return pair(curves, "constant", seed)
    if seed not in seeds_of(curves, "decay"):
        return None
    return Pair(*(_before_decay(curve) for curve in pair(curves, "decay", seed)))


def _before_decay(curve: list[Validation]) -> list[Validation]:
    return [each for each in curve if each.update <= (1.0 - DECAY) * curve[-1].update]


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
    seeds = sorted({*seeds_of(curves, "constant"), *seeds_of(curves, "decay")})
    parts, goals, last = [], [], []
    for seed in seeds:
        found = steady(curves, seed)
        if found is not None:
            parts.append(f"Seed {seed}, learning rate constant:\n\n{_steady_report(found)}")
            last.append(last_share(*found, averaged))
    share = statistics.median(last) if last else math.inf
    ends = {seed: pair(curves, "decay", seed) for seed in seeds_of(curves, "decay")}
    if ends:
        parts.append(_ends_report(ends))
        reached = max(each.share for each in ends.values())
        gap = min(each.gap for each in ends.values())
        name = f"loss of experts that end at {reached:.2f} of the updates, less the dense one"
        goals.append(Goal(name, -gap, 0.0, " nats", at_least=False))
        share = min(share, reached) if gap >= 0.0 else share
    goals.append(Goal("updates to the dense model's best loss", share, SHARE, "x", False))
    if cost is not None:
        goals.append(Goal("processor time to it", share * cost, 0.9, "x", at_least=False))
    return "\n\n".join(parts), goals


def _ends_report(ends: Mapping[int, Pair]) -> str:
    """Return the losses at the ends of runs whose learning rate fell."""
    rows = [
        [
            str(seed),
            *(f"{run[-1].update:,}" for run in each),
            *(_text(run[-1].averaged) for run in each),
            _text(each.gap),
        ]
        for seed, each in ends.items()
    ]
    header = ["seed", "dense updates", "with experts", "dense nll", "with experts", "gap"]
    texts = "\n\n".join(
        f"Seed {seed}, by text:\n\n{_texts(each, each.dense[-1], each.moe[-1])}"
        for seed, each in ends.items()
    )
    return f"At the ends, after the learning rate fell:\n\n{table(header, rows)}\n\n{texts}"


def _texts(curves: Pair, dense: Validation, moe: Validation) -> str:
    """Return losses by text of one validation of each run, and what share experts needed."""
    rows = [
        [
            name,
            *map(_text, (nll, moe.by_text[name], nll - moe.by_text[name])),
            _text(last_share(*curves, of_text(name))),
        ]
        for name, nll in dense.by_text.items()
    ]
    return table(["text", "dense nll", "with experts", "gap", "r"], rows)


def _steady_report(curves: Pair) -> str:
    shares, of_raw = reach(*curves, averaged), reach(*curves, raw)
    by_update = {each.update: each for each in curves.moe}
    rows = []
    for each in curves.dense:
        other = by_update.get(each.update)
        gap = math.nan if other is None else each.averaged - other.averaged
        ratios = [found.get(each.update, math.nan) for found in (shares, of_raw)]
        figures = map(_text, (each.averaged, gap, *ratios))
        rows.append([f"{each.update:,}", f"{each.tokens / 1e6:.1f}", *figures])
    header = ["update", "M tokens", "dense nll", "gap", "r", "r, raw weights"]
    both = [each for each in curves.dense if each.update in by_update]
    last, first = both[-1], curves.moe[0]
    twin = by_update[last.update]
    steep, gap = slope(both), last.averaged - twin.averaged
    layers = [
        [name, *map(_text, (first.entropy[name], twin.entropy[name], twin.spread[name]))]
        for name in twin.entropy
    ]
    return "\n\n".join(
        [
            table(header, rows),
            f"At update {last.update:,}: gap {gap:.3f} nats, slope {steep:.2f} nats per e-fold of "
            f"tokens over the last half, so r by the slope is {math.exp(gap / steep):.2f}.",
            _texts(curves, last, twin),
            table(["layer", f"entropy at {first.update:,}", "at the end", "load cv"], layers),
        ]
    )


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def plot(curves: Curves, path: Path) -> None:
    """Plot losses over tokens, shares over the dense loss, and entropies of the routers."""
    picture = load_matplotlib().Figure(figsize=(11, 3.6), layout="constrained")
    losses, shares, entropies = picture.subplots(1, 3)
    for seed in sorted({*seeds_of(curves, "constant"), *seeds_of(curves, "decay")}):
        schedule = "constant" if seed in seeds_of(curves, "constant") else "decay"
        dense, moe = pair(curves, schedule, seed)
        for name, curve, color in ((DENSE, dense, "#4c72b0"), (MOE, moe, "#dd8452")):
            tokens = [each.tokens / 1e6 for each in curve]
            label = f"{name}, averaged"
            losses.plot(tokens, list(map(averaged, curve)), color=color, label=label)
            losses.plot(
                tokens, list(map(raw, curve)), color=color, linestyle=":", label=f"{name}, raw"
            )
        found = steady(curves, seed) or Pair(dense, moe)
        at = {each.update: each.averaged for each in found.dense}
        reached = reach(*found, averaged)
        shares.plot([at[update] for update in reached], list(reached.values()), marker=".")
        for name in moe[-1].entropy:
            steps = [each.update for each in moe]
            entropies.plot(steps, [each.entropy[name] for each in moe], label=name)
    losses.set_xscale("log", subs=[])  # whose own labels would overlap
    decades = [scale * digit for scale in (1, 10, 100) for digit in (1, 2, 5)]
    left, right = losses.get_xlim()
    shown = [each for each in decades if left <= each <= right]
    losses.set_xticks(shown, list(map(str, shown)))
    losses.set(xlabel="million target tokens", ylabel="nats per target token")
    shares.axhline(SHARE, color="gray", linestyle=":")
    shares.invert_xaxis()
    shares.set(xlabel="nll of the dense model", ylabel="share of its updates that experts need")
    entropies.set(xlabel="update", ylabel="entropy of routers, nats")
    losses.legend(frameon=False, fontsize=8)
    entropies.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
