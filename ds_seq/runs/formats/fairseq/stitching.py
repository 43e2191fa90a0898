"""Join the files of a checkpoint of fairseq's branch `moe`.

It writes `NAME-shared.pt` with what all ranks have, and `NAME-rank-N.pt` with the experts of each
rank, numbered from 0. With more ranks than experts, ranks have copies of the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.arguments import find_arguments
from ds_seq.runs.formats.fairseq.plain import read_plain

_PART = re.compile(r"(?P<name>.+)-(?:shared|rank-\d+)\.pt$")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def read_checkpoint(path: Path) -> Any:
    """Read a checkpoint, or all files of one that is divided.

    Args:
        path: the file, any file of a divided one, or the name without `-shared` and `-rank-N`.

    Returns:
        Its content. Experts have their numbers among those of all ranks.

    Raises:
        UserError: a file is missing or damaged.
    """
    part = _PART.fullmatch(path.name)
    name = part["name"] if part else path.name.removesuffix(".pt")
    shared = path.with_name(f"{name}-shared.pt")
    if part is None and (path.exists() or not shared.exists()):
        return read_plain(path)
    whole = _content(shared)
    ranks = [_content(file) for file in _rank_files(path.parent, name)]
    # as in fairseq, arguments and history are those of the first rank
    count = find_arguments(ranks[0], path).get("moe_expert_count")
    tensors = dict(whole["model"])
    for rank, content in enumerate(ranks):
        tensors |= _numbered(content["model"], rank, count if isinstance(count, int) else 0)
    return {**whole, **ranks[0], "model": tensors}


def _content(path: Path) -> Mapping[str, Any]:
    content = read_plain(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise UserError(
            f"{path}: has no weights under the key model; give a checkpoint that fairseq wrote"
        )
    return content


def _rank_files(folder: Path, name: str) -> list[Path]:
    """Return the files of all ranks in their order."""
    pattern = re.compile(re.escape(name) + r"-rank-(\d+)\.pt")
    found = {int(m[1]): file for file in folder.iterdir() if (m := pattern.fullmatch(file.name))}
    for rank in range(max(found, default=0) + 1):
        if rank not in found:
            raise UserError(f"{folder / name}-rank-{rank}.pt: missing; copy the files of all ranks")
    return [found[rank] for rank in sorted(found)]


def _numbered(state: Mapping[str, Any], rank: int, count: int) -> dict[str, Any]:
    """Return the experts of a rank by their numbers among all `count` experts."""
    local = {int(number) for key in state for number in _EXPERT.findall(key)}
    first = rank * len(local)
    return {
        _EXPERT.sub(lambda match: str((first + int(match[0])) % max(count, 1)), key): value
        for key, value in state.items()
    }
