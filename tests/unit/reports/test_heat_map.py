"""The picture of the load: what is where, and in which color."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ds_seq.errors import UserError
from ds_seq.reports.heat_map import Panel, draw_heat_map, save_picture

WHITE = (255, 255, 255)


def brightness(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return pixels.astype(np.int64).sum(-1)


def cells(panel: Panel) -> list[list[tuple[int, ...]]]:
    """The color of each cell, found by where a first row of another color makes a difference."""
    num_experts = max(map(len, panel.shares))
    image = draw_heat_map([panel])
    layers = len(panel.layers)
    blank = draw_heat_map([panel._replace(shares=[[0.0] * num_experts] + [[]] * (layers - 1))])
    first = draw_heat_map([panel._replace(shares=[[1.0] * num_experts] + [[]] * (layers - 1))])
    ys, xs = np.nonzero((blank != first).any(-1))
    y, x, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
    # a cell has a frame of one pixel
    height, width = bottom - y + 2, (right - x + 2) // num_experts
    return [
        [
            tuple(map(int, image[y + row * height, x + column * width]))
            for column in range(num_experts)
        ]
        for row in range(layers)
    ]


@pytest.mark.parametrize("num_experts", [4, 16, 40])
def test_colors_tell_little_fair_much_and_starved(num_experts: int) -> None:
    shares = [[0.0, 0.2, 1.0, 5.0] + [1.0] * (num_experts - 4), [1.0] * num_experts]
    top, bottom = cells(Panel("load", ["a", "b"], shares))
    starved, little, fair, much = top[:4]
    assert len({starved, little, fair, much}) == 4
    assert little[2] > little[0], "blue"
    assert much[0] > much[2], "red"
    assert len(set(starved)) == 1 and starved != WHITE, "gray"
    assert bottom == [fair] * num_experts


def test_a_layer_of_fewer_experts_ends_in_blanks() -> None:
    first, second = cells(Panel("load", ["a", "b"], [[1.0, 1.0, 1.0, 1.0], [2.0, 0.5]]))
    assert WHITE not in first and WHITE not in second[:2]
    assert second[2:] == [WHITE] * 2


def test_numbers_labels_and_title_are_drawn() -> None:
    panel = Panel("title", ["encoder 1"], [[0.5, 9.0]])
    image = draw_heat_map([panel])
    others = [
        panel._replace(title="other"),
        panel._replace(layers=["encoder 2"]),
        panel._replace(shares=[[0.5, 9.5]]),  # of one color, beyond the scale
    ]
    for other in others:
        assert not np.array_equal(draw_heat_map([other]), image)


def test_many_languages_make_a_page_and_not_a_scroll() -> None:
    panels = [Panel(f"<2{n}>", ["0", "1"], [[1.0] * 8] * 2) for n in range(30)]
    height, width, _ = draw_heat_map(panels).shape
    assert 0.5 < height / width < 2.0
    one = draw_heat_map(panels[:1])
    dark = brightness(one) < 600
    assert (brightness(draw_heat_map(panels)) < 600).sum() > 10 * dark.sum()


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    pixels = draw_heat_map([Panel("load", ["0"], [[0.25, 1.75]])])
    save_picture(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        save_picture(tmp_path / "folder", pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "folder"]
