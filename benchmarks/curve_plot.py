"""Plots of learning curves. matplotlib is an extra: `pip install 'ds_seq[benchmarks]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curves import Curve

from ds_seq.errors import UserError

_COLORS = ("#4c72b0", "#dd8452", "#55a868")
_AXES = (("update", "updates", 1.0), ("seconds", "minutes of training", 60.0))


def load_matplotlib() -> Any:
    """Return `matplotlib.figure`, which needs no display.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise UserError(
            f"the plot needs matplotlib ({error}): pip install matplotlib, or skip the plot with "
            "--no-plot"
        ) from error
    return figure


def plot_growth(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    ticks: Sequence[tuple[int, str]],
    label: str,
    path: Path,
    is_log: bool = False,
) -> None:
    """Plot figures that grow with a length, one panel per kind of figure.

    Args:
        panels: by the label of a panel's figures, for each system the figure at each length.
        ticks: lengths to mark, and what to write there.
        label: what the length is.
        path: file to write; its suffix determines the format.
        is_log: whether figures have a logarithmic scale, too; otherwise it begins at 0.
    """
    picture = load_matplotlib().Figure(figsize=(8, 3.4), layout="constrained")
    for panel, (figures, by_system) in zip(
        picture.subplots(1, len(panels)), panels.items(), strict=True
    ):
        for name, values in by_system.items():
            panel.plot(list(values), list(values.values()), marker="o", markersize=3, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(*zip(*ticks, strict=True), rotation=45)
        if is_log:
            panel.set_yscale("log", base=2)
        else:
            panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.set_ylabel(figures)
        panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    picture.savefig(path, dpi=110)


def plot_curves(
    curves: Mapping[int, Mapping[str, Curve]], reference: str, title: str, path: Path
) -> None:
    """Plot validation BLEU over updates and over training time, side by side.

    Args:
        curves: curves by seed and system.
        reference: the system whose best BLEU is marked.
        title: title of the figure.
        path: file to write; its suffix determines the format.
    """
    picture = load_matplotlib().Figure(figsize=(9, 3.8), layout="constrained")
    panels = picture.subplots(1, len(_AXES), sharey=True)
    systems = list(dict.fromkeys(name for by_system in curves.values() for name in by_system))
    for panel, (axis, label, unit) in zip(panels, _AXES, strict=True):
        for color, system in zip(_COLORS, systems, strict=False):
            named = False
            for by_system in curves.values():
                if system not in by_system:
                    continue
                points = by_system[system].against(axis, "bleu")[1:]
                xs, ys = [x / unit for x, _ in points], [y for _, y in points]
                panel.plot(
                    xs, ys, color=color, marker=".", label=None if named else system, alpha=0.85
                )
                named = True
        for by_system in curves.values():
            if reference in by_system:
                best = by_system[reference].best_bleu.bleu
                panel.axhline(best, color="gray", linestyle=":", linewidth=1)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("validation BLEU")
    panels[0].legend(frameon=False)
    picture.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
