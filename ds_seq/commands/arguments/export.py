"""The arguments of `ds-seq export`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.calibration import add_measured, add_scored
from ds_seq.commands.arguments.shared import CHECKPOINT_HELP, EXPORT_DTYPES, add_layers
from ds_seq.commands.parser import CommandParser, command_parser
from ds_seq.names import CONFIG_FILE, EXPORT_FILE, EXPORT_FORMATS, EXPORT_SUFFIX, VOCAB_FILE


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq export`."""
    parser = command_parser(
        "export",
        "Write a trained model as one self-contained file: weights, experiment and "
        "vocabulary. `ds-seq generate model.safetensors` needs nothing else. If the name does not "
        f"end in {EXPORT_SUFFIX}, write a folder: {CONFIG_FILE}, {VOCAB_FILE}, {EXPORT_FILE}.",
        abbreviations=True,
    )
    add = parser.add_argument
    add("run", type=Path, help="run folder, or an earlier export")
    add("--out", type=Path, required=True, help="new file or folder to write")
    add("--checkpoint", default="best", help=CHECKPOINT_HELP)
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    add("--format", choices=EXPORT_FORMATS, default=EXPORT_FORMATS[0],
        help="safetensors, for ds-seq; bitnet, for ds-seq, with the weights of model.linear bitnet "
        "packed in 1.6 bits each (1 if binary); ctranslate2, a folder for that runtime (needs the "
        "package ctranslate2); hf, a folder that transformers opens (needs the package "
        "tokenizers)")  # fmt: skip
    add("--only", nargs="+", default=[], metavar="PART",
        help="write only adapters, adapters.ID or lora, to a file that belongs to the model "
        "without them: `ds-seq generate MODEL --part FILE`")  # fmt: skip
    add("--merge-lora", action="store_true",
        help="merge low-rank changes (model.lora) into the weights")  # fmt: skip
    add("--merge-experts", action="store_true",
        help="ctranslate2 and hf: merge the experts of each layer into one dense feed-forward, "
        "their average weighted by use on --data")  # fmt: skip
    add_measured(parser, "--merge-experts", " (default: all experts count the same)")
    add_scored(parser, "with --merge-experts, before and after it; default: none")
    add_layers(parser)
    return parser
