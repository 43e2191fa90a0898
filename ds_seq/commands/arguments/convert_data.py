"""The arguments of `ds-seq convert-data`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.parser import CommandParser, add_overrides, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq convert-data`."""
    parser = command_parser(
        "convert-data",
        "Convert binarized data: what fairseq-preprocess wrote into shards in data.dir, or the "
        "shards of data.dir into files that fairseq-train reads.",
        abbreviations=True,
    )
    parser.add_argument("experiment", help="experiment file (YAML); its data section is used")
    add_overrides(parser)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from-fairseq",
        metavar="DIR[:DIR...]",
        help="folders that fairseq-preprocess wrote; their text must be split by the vocabulary "
        "in data.dir, or by that of data.vocab.fairseq",
    )
    direction.add_argument(
        "--to-fairseq", type=Path, metavar="DIR", help="new folder for files of fairseq"
    )
    parser.add_argument(
        "--languages",
        nargs=2,
        metavar=("SOURCE", "TARGET"),
        help="with --from-fairseq: language codes in the names of the files; default: those of "
        "the experiment",
    )
    return parser
