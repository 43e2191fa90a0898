"""`ds-seq export`: write one weights file for use on any machine, without DeepSpeed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ds_seq.commands.arguments.export import build_parser
from ds_seq.commands.arguments.shared import chosen_layers
from ds_seq.commands.merged_export import merged_export
from ds_seq.errors import UserError
from ds_seq.names import EXPORT_SUFFIX
from ds_seq.runs.export import export
from ds_seq.weights.packed import PackedFile, open_file


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq export`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    if options.merge_experts:
        path = merged_export(options)
    else:
        _check_unmerged(options)
        path = _export(options)
    size = path.stat().st_size
    print(f"{path}: {size / 1e6:,.1f} MB{_saved(path, size)}")
    return 0


def _check_unmerged(options: argparse.Namespace) -> None:
    """Refuse the options of a merge without one."""
    for name in ("data", "input", "reference"):
        if vars(options)[name] is not None:
            raise UserError(f"--{name}: only used with --merge-experts; give both or neither")


def _export(options: argparse.Namespace) -> Path:
    return export(
        options.run,
        options.out,
        options.checkpoint,
        options.dtype,
        options.format,
        options.merge_lora,
        options.only,
        chosen_layers(options),
    )


def _saved(path: Path, size: int) -> str:
    """Return what a packed export saves."""
    if path.suffix != EXPORT_SUFFIX:
        return ""
    file = open_file(path)
    if not isinstance(file, PackedFile):
        return ""
    whole = 4 * file.num_values()
    return f" instead of {whole / 1e6:,.1f} MB in fp32 ({whole / size:.1f} times as small)"
