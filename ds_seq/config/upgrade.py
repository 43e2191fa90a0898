"""Translate keys of older experiment files and run folders to their current names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_seq.config.yaml_file import KeyPath


def _same(value: Any) -> Any:
    return value


def _metrics(value: Any) -> Any:
    """Convert the old switch: BLEU and chrF together, or no translation at all."""
    if not isinstance(value, bool):
        raise ValueError
    return ["bleu", "chrf"] if value else []


MOVED: dict[KeyPath, tuple[KeyPath, Callable[[Any], Any]]] = {
    ("train", "valid_bleu"): (("validation", "metrics"), _metrics),
    ("train", "best_metric"): (("validation", "best"), _same),
    ("train", "valid_max_sentences"): (("validation", "max_sentences"), _same),
}
"""Old key -> its current key, and the conversion of its value."""


def upgrade(data: dict[str, Any]) -> tuple[dict[str, Any], dict[KeyPath, KeyPath]]:
    """Return the settings under their current keys.

    An old key is kept, and later rejected as unknown, if the new key is given as well or if the
    value was never valid.

    Args:
        data: settings of one file, of the command line or of a whole experiment; not modified.

    Returns:
        The settings, and the old key of each key that was moved.
    """
    moved: dict[KeyPath, KeyPath] = {}
    for (section, key), ((new_section, new_key), convert) in MOVED.items():
        old, new = data.get(str(section)), data.get(str(new_section), {})
        if not isinstance(old, dict) or key not in old:
            continue
        if not isinstance(new, dict) or new_key in new:
            continue
        try:
            value = convert(old[key])
        except ValueError:
            continue
        rest = {name: other for name, other in old.items() if name != key}
        data = {**data, str(section): rest, str(new_section): {**new, new_key: value}}
        moved[new_section, new_key] = (section, key)
    return data, moved
