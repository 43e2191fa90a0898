"""`ds-seq export`: write one weights file for use on any machine, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ds_seq.commands.parser import command_parser
from ds_seq.runs.export import ExportFormat, export
from ds_seq.runs.formats.ds_seq import CONFIG_FILE, EXPORT_FILE, EXPORT_SUFFIX
from ds_seq.runs.open import DTYPES
from ds_seq.text.vocab_file import VOCAB_FILE


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq export`; return the exit code."""
    parser = command_parser(
        "export",
        "Write a trained model as one self-contained file: weights, experiment and "
        "vocabulary. `ds-seq generate model.safetensors` needs nothing else. If the name does not "
        f"end in {EXPORT_SUFFIX}, write a folder: {CONFIG_FILE}, {VOCAB_FILE}, {EXPORT_FILE}.",
        abbreviations=True,
    )
    parser.add_argument("run", type=Path, help="run folder, or an earlier export")
    parser.add_argument("--out", type=Path, required=True, help="new file or folder to write")
    parser.add_argument("--checkpoint", default="best", help="best, last, a name or a path")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision on disk")
    parser.add_argument("--format", choices=get_args(ExportFormat), default="safetensors",
        help="safetensors, for ds-seq; ctranslate2, a folder for that runtime (needs the package "
        "ctranslate2)")  # fmt: skip
    options = parser.parse_args(argv)
    path = export(options.run, options.out, options.checkpoint, options.dtype, options.format)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0
