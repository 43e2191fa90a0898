"""Curves of several runs in one picture, from their `metrics.jsonl`.

matplotlib is an extra: `pip install 'ds_seq[plot]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.plugins import nearest
from ds_seq.reports.curves import AXES, BEST, VALID, Axis, RunCurves

DEFAULT_FIGURES = ("loss", f"{VALID}{BEST}", "lr", "grad_norm")

# Okabe and Ito's colors, which readers with any color vision can tell apart; yellow is too pale
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_LARGE_RATIO = 50.0  # of the values of a panel, from which on its scale is logarithmic
_LOGARITHMIC = ("loss", "grad_norm", "ppl", f"{VALID}loss", f"{VALID}ppl")
_LONGEST_NAME = 40
_FEW = 30  # points, up to which they are marked
_MOST_CURVES = len(_COLORS) * len(_LINES)
_WIDTH, _HEIGHT, _LEGEND_ROW = 5.2, 3.4, 0.22  # inches


def check_figures(runs: Sequence[RunCurves], figures: Sequence[str]) -> None:
    """Require that at least one run has each figure.

    Raises:
        UserError: none has; names the nearest.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.figures))
    for name in figures:
        if name not in known and name != VALID + BEST:
            names = [each for each in known if each.split("/")[-1] not in ("update", "time")]
            raise UserError(
                f"--figures {name}: no run has such a figure{nearest(name, names)}; there are "
                f"{', '.join(sorted(names)[:20])}, ..."
            )


def draw_curves(runs: Sequence[RunCurves], figures: Sequence[str], axis: Axis, path: Path) -> None:
    """Draw a panel for each figure, with a curve for each run, and write the picture.

    Args:
        runs: the runs.
        figures: names of figures; `valid/best` is that which decides which checkpoint is best.
        axis: what to draw over.
        path: PNG or SVG file.

    Raises:
        UserError: matplotlib is not installed, there are too many runs, or nothing to draw, or the
            file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise UserError(
            "ds-seq plot: needs matplotlib, which is not installed; pip install 'ds_seq[plot]'"
        ) from None
    if len(runs) > _MOST_CURVES:
        raise UserError(f"ds-seq plot: {len(runs)} runs; give at most {_MOST_CURVES} of them")
    panels = [name for name in figures if any(run.curve(name, axis)[0] for run in runs)]
    if not panels:
        raise UserError("ds-seq plot: these runs have none of the figures; choose with --figures")
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    legend_columns = min(len(runs), max(1, int(columns * _WIDTH * 11 / (_longest(runs) + 8))))
    legend = _LEGEND_ROW * -(-len(runs) // legend_columns) + 0.15
    height = rows * _HEIGHT + legend
    figure: Any = Figure(figsize=(columns * _WIDTH, height), layout="constrained", dpi=130)
    figure.get_layout_engine().set(rect=(0, legend / height, 1, 1 - legend / height))
    for number, name in enumerate(panels):
        _draw_panel(figure.add_subplot(rows, columns, number + 1), runs, name, axis)
    handles = [Line2D([], [], linewidth=2.0, **_style(number)) for number in range(len(runs))]
    names = [_short(run.name) for run in runs]
    figure.legend(handles, names, loc="lower center", ncols=legend_columns, frameon=False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())


def _draw_panel(axes: Any, runs: Sequence[RunCurves], name: str, axis: Axis) -> None:
    values: list[float] = []
    for number, run in enumerate(runs):
        xs, ys = run.curve(name, axis)
        marker = "o" if 0 < len(xs) <= _FEW else None
        axes.plot(xs, ys, marker=marker, markersize=3.5, linewidth=1.6, **_style(number))
        values += ys
    axes.set_title(_title(runs, name), fontsize=11, loc="left")
    axes.set_xlabel(AXES[axis])
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    positive = [value for value in values if value > 0]
    is_wide = bool(positive) and max(positive) > _LARGE_RATIO * min(positive)
    if name in _LOGARITHMIC and is_wide and len(positive) == len(values):
        axes.set_yscale("log")
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="x", scilimits=(-3, 5), useMathText=True)


def _style(number: int) -> dict[str, Any]:
    line = _LINES[number // len(_COLORS) % len(_LINES)]
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": line}


def _title(runs: Sequence[RunCurves], name: str) -> str:
    if name == VALID + BEST:
        names = dict.fromkeys(best for run in runs if (best := run.known_best()))
        return f"validation: {', '.join(names)}"
    prefix = "validation: " if name.startswith(VALID) else "training: "
    return prefix + name.removeprefix(VALID)


def _longest(runs: Sequence[RunCurves]) -> int:
    return max(len(_short(run.name)) for run in runs)


def _short(name: str) -> str:
    """Return a name as the legend shows it, in which `$` begins no formula."""
    is_short = len(name) <= _LONGEST_NAME
    return (name if is_short else f"...{name[3 - _LONGEST_NAME :]}").replace("$", r"\$")
