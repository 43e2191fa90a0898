"""The text of an experiment file that was translated, with the flags as comments."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ds_seq.compat.fairseq.translate import Translation
from ds_seq.config.yaml_file import parse_value

_COLUMN = 44
_WIDTH = 100


def experiment_text(result: Translation, words: Sequence[str], deepspeed: str | None) -> str:
    """Return the experiment file.

    Args:
        result: what the command became.
        words: the command.
        deepspeed: path of the DeepSpeed JSON.
    """
    experiment = result.experiment
    train = {"deepspeed": deepspeed, **experiment["train"]}
    lines = [
        "# Translated by `ds-seq from-fairseq` from:",
        *_comment(shlex.join(words), "#   "),
    ]
    if result.without_effect:
        lines += ["#", "# Without effect:"]
        for flag, reason in result.without_effect:
            lines += _comment(f"{flag}: {reason}", "#   ")
    if result.notes:
        lines += ["#", "# What differs:"]
        for note in result.notes:
            lines += _comment(note, "#   ")
    for section, value in {**experiment, "train": train}.items():
        if isinstance(value, Mapping):
            lines.append("")
        lines += _entry(section, value, "", (), result.flags)
    return "\n".join(lines) + "\n"


def deepspeed_text(result: Translation) -> str:
    """Return the DeepSpeed JSON."""
    return json.dumps(result.deepspeed, indent=2) + "\n"


def _comment(text: str, start: str) -> Iterator[str]:
    """Break a comment into lines; words are kept whole."""
    line = start
    for word in text.split():
        if len(line) + len(word) > _WIDTH and line.strip("# "):
            yield line.rstrip()
            line = f"{start}  "
        line += f"{word} "
    yield line.rstrip()


def _entry(
    key: str, value: Any, indent: str, above: Sequence[str], flags: Mapping[str, list[str]]
) -> Iterator[str]:
    path = (*above, key)
    named = flags.get(".".join(path), [])
    comment = f"# {' '.join(named)}" if named else ""
    if isinstance(value, Mapping) and value and not (above and _fits(value)):
        yield f"{indent}{key}:" + (f"  {comment}" if comment else "")
        for name, item in value.items():
            yield from _entry(name, item, f"{indent}  ", path, flags)
        return
    line = f"{indent}{key}: {_scalar(value)}"
    yield f"{line:<{_COLUMN - 2}}  {comment}" if comment else line


def _fits(section: Mapping[str, Any]) -> bool:
    """Return whether a section is one short line."""
    return len(section) < 4 and all(
        not isinstance(item, Mapping) and len(str(item)) < 20 for item in section.values()
    )


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, float):
        return repr(value)
    if not isinstance(value, str):
        return json.dumps(value)
    is_plain = re.fullmatch(r"[\w./+-]+", value) is not None and parse_value(value) == value
    return value if is_plain else json.dumps(value, ensure_ascii=False)
