"""What the tensors of a Hugging Face folder say beyond its `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ds_seq.config.huggingface.folder import StoredTensors
from ds_seq.errors import UserError

SOURCE_TABLE = "model.encoder.embed_tokens.weight"
TARGET_TABLE = "model.decoder.embed_tokens.weight"
OUTPUT_TABLE = "model.decoder.output_projection.weight"
"""Tables of FSMT, whose sides have a vocabulary each."""
_OUTPUT, _BIAS = "lm_head.weight", "final_logits_bias"
_POSITIONS = "model.encoder.embed_positions.weight"
_ROWS, _CLOSE = 4, 5e-3  # bfloat16 has rounded them by half of it
_FIRST = {"marian": 0, "pegasus": 0, "m2m_100": 2, "fsmt": 2}
"""Row of the first position, of models whose positions are sinusoids."""
_EXCLUSIVE = ("marian", "pegasus")


class Facts(NamedTuple):
    """What the config does not say.

    Attributes:
        has_output: whether the output projection is a table of its own.
        has_bias: whether logits have a bias that is not zeros.
        has_positions: whether positions that usually are sinusoids are others.
    """

    has_output: bool = False
    has_bias: bool = False
    has_positions: bool = False


def read_facts(settings: Mapping[str, Any], stored: StoredTensors) -> Facts:
    """Look at the tensors of a folder.

    Args:
        settings: content of `config.json`.
        stored: its tensors.

    Raises:
        UserError: a file is damaged.
    """
    kind = str(settings.get("model_type"))
    if kind == "fsmt":
        output, tables = OUTPUT_TABLE, [TARGET_TABLE]
    else:
        output, tables = _OUTPUT, ["model.shared.weight", "shared.weight"]
    table = next((name for name in tables if name in stored), None)
    has_output = output in stored and not (table is None and kind == "fsmt")
    if has_output and table is not None:
        has_output = not stored.is_same(output, table)
    has_bias = _BIAS in stored and stored.has_values(_BIAS)
    return Facts(has_output, has_bias, kind in _FIRST and _has_other_positions(kind, stored))


def _has_other_positions(kind: str, stored: StoredTensors) -> bool:
    """Return whether a stored table is not that of sinusoids; a few of its rows tell."""
    if _POSITIONS not in stored:
        return False
    shape, first = stored.shape(_POSITIONS), _FIRST[kind]
    if len(shape) != 2 or shape[0] <= first or shape[1] % 2:
        raise UserError(
            f"{stored[_POSITIONS]}: {_POSITIONS} has the shape {tuple(shape)}; copy it again"
        )
    # from the first, which all texts train, to the last
    numbers = {first + (shape[0] - 1 - first) * i // (_ROWS - 1) for i in range(_ROWS)} | {first}
    return not all(
        _is_close(stored.row(_POSITIONS, number), sinusoids(number, shape[1], kind in _EXCLUSIVE))
        for number in numbers
    )


def sinusoids(position: int, width: int, is_exclusive: bool) -> list[float]:
    """Return a row of `ds_seq.modules.positions.sinusoidal_rows`, without torch."""
    half = width // 2
    steps = half if is_exclusive else max(half - 1, 1)
    angles = [position * math.exp(-math.log(10000.0) * i / steps) for i in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles)]


def _is_close(row: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= _CLOSE for a, b in zip(row, other, strict=True))
