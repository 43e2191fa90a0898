"""Draw the load of experts as a heat map: a row for each layer, a column for each expert.

Drawn with Pillow, which TensorBoard needs anyway. Does not depend on models or runs.

Shapes: `E` experts, `H` height and `W` width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ds_seq import files

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

STARVED = 0.01
"""Fraction of the fair share below which an expert counts as unused."""

_PAGE, _INK, _STARVED_COLOUR = (255, 255, 255), (40, 40, 40), (60, 60, 60)
# From low (blue) through the fair share (pale yellow) to high (red), for readers who cannot
# distinguish red and green. The scale is logarithmic, in powers of two of the fair share.
_SCALE: list[Color] = [
    (49, 54, 149),
    (116, 173, 209),
    (255, 255, 204),
    (244, 109, 67),
    (128, 0, 38),
]
_REACH = 3.0  # the scale ends at 1/8 and at 8 times the fair share
_TICKS = ["1/8", "1/4", "1/2", "fair", "2", "4", "8"]
_TEXT, _GAP, _CELL_HEIGHT = 12, 8, 22
_WIDE, _NARROW = 40, 14  # width of a cell with a number in it, and without
_MOST_WITH_NUMBERS = 16
_BAR = 24 * (len(_TICKS) - 1)


class Panel(NamedTuple):
    """Data of one heat map, with layers from top to bottom."""

    title: str
    layers: Sequence[str]
    """Name of each layer."""
    shares: Sequence[Sequence[float]]
    """For each layer, the token share of each expert divided by the fair share, 1 / E. Layers may
    have different numbers of experts; missing cells stay blank."""


def draw_heat_map(panels: Sequence[Panel]) -> Pixels:
    """Draw heat maps in a grid with a common scale.

    Args:
        panels: data of the maps, at least one, each with at least one layer.

    Returns:
        (H, W, 3) RGB pixels.
    """
    drawn = [_panel(panel) for panel in panels]
    height = max(image.height for image in drawn)
    width = max(image.width for image in drawn)
    columns = max(1, round(math.sqrt(len(drawn) * height / width)))
    rows = -(-len(drawn) // columns)
    legend = _legend()
    page = Image.new(
        "RGB", (max(columns * width, legend.width), rows * height + legend.height), _PAGE
    )
    for index, image in enumerate(drawn):
        row, column = divmod(index, columns)
        page.paste(image, (column * width, row * height))
    page.paste(legend, (0, rows * height))
    return np.asarray(page)


def save_picture(path: Path, pixels: Pixels) -> None:
    """Write pixels (H, W, 3) to a PNG file atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with files.replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def _panel(panel: Panel) -> Image.Image:
    """Draw the title, the cells, the layer names on the left and the expert numbers below."""
    font = _font()
    num_experts = max(map(len, panel.shares))
    with_numbers = num_experts <= _MOST_WITH_NUMBERS
    cell = _WIDE if with_numbers else _NARROW
    left = 2 * _GAP + max(_width(name) for name in ("layer", *panel.layers))
    top = 3 * _GAP + 2 * _TEXT
    bottom = top + _CELL_HEIGHT * len(panel.layers)
    width = max(left + cell * num_experts, _width(panel.title) + _GAP) + 2 * _GAP
    page = Image.new("RGB", (width, bottom + 2 * _TEXT + 3 * _GAP), _PAGE)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), panel.title, _INK, font)
    draw.text((left - _GAP, top - 4), "layer", _INK, font, anchor="rb")
    for row, (name, shares) in enumerate(zip(panel.layers, panel.shares, strict=True)):
        y = top + row * _CELL_HEIGHT
        middle = y + _CELL_HEIGHT // 2
        draw.text((left - _GAP, middle), name, _INK, font, anchor="rm")
        for expert, (share, color) in enumerate(zip(shares, _colors(shares), strict=True)):
            x = left + expert * cell
            box = (x, y, x + cell - 1, y + _CELL_HEIGHT - 1)
            fill = (int(color[0]), int(color[1]), int(color[2]))
            draw.rectangle(box, fill, outline=_PAGE)
            if with_numbers:
                ink = _INK if sum(fill) > 380 else _PAGE
                draw.text((x + cell // 2, middle), f"{share:.2f}", ink, font, anchor="mm")
    step = 1 if with_numbers else 8
    for expert in range(0, num_experts, step):
        x = left + expert * cell + cell // 2
        draw.text((x, bottom + 4), str(expert), _INK, font, anchor="ma")
    draw.text((left, bottom + _TEXT + _GAP), "expert", _INK, font)
    return page


def _legend() -> Image.Image:
    """Draw the color scale and its labels."""
    font = _font()
    words = "share of the tokens over the fair share"
    starved = f"below {STARVED:g}: starved"
    width = 8 * _GAP + _BAR + max(_width(words), _width(starved) + _TEXT + _GAP) + 2 * _GAP
    page = Image.new("RGB", (width, 2 * (_TEXT + _GAP) + 2 * _GAP), _PAGE)
    draw = ImageDraw.Draw(page)
    left = 2 * _GAP
    steps = 2.0 ** np.linspace(-_REACH, _REACH, _BAR)
    bar = np.repeat(_colors(steps)[None], _TEXT, axis=0)  # (H, W, 3)
    page.paste(Image.fromarray(bar), (left, 0))
    for index, tick in enumerate(_TICKS):
        x = left + index * _BAR // (len(_TICKS) - 1)
        draw.text((x, _TEXT + 4), tick, _INK, font, anchor="ma")
    left += _BAR + 3 * _GAP
    draw.text((left, 0), words, _INK, font)
    y = _TEXT + _GAP
    draw.rectangle((left, y, left + _TEXT, y + _TEXT), _STARVED_COLOUR)
    draw.text((left + _TEXT + _GAP, y), starved, _INK, font)
    return page


def _colors(shares: Sequence[float] | NDArray[np.float64]) -> Pixels:
    """Return colors (E, 3) of shares (E,), relative to the fair share."""
    share = np.asarray(shares, np.float64)
    place = np.log2(np.maximum(share, 1e-9)).clip(-_REACH, _REACH)
    knots = np.linspace(-_REACH, _REACH, len(_SCALE))
    channels = [np.interp(place, knots, [color[c] for color in _SCALE]) for c in range(3)]
    colors = np.stack(channels, axis=-1).round().astype(np.uint8)
    colors[share < STARVED] = _STARVED_COLOUR
    return colors


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow, so that images are the same on every machine."""
    return ImageFont.load_default(_TEXT)


def _width(text: str) -> int:
    return math.ceil(_font().getlength(text))
