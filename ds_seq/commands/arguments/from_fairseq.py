"""The arguments of `ds-seq from-fairseq`, which stand before `--`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq from-fairseq`."""
    parser = command_parser(
        "from-fairseq",
        "Print the experiment and the DeepSpeed JSON that train what a command of fairseq-train "
        "trains: each flag becomes an option, or is listed as without effect, or is refused, with "
        "the reason. fairseq is not needed.",
        usage="ds-seq from-fairseq [OPTION ...] -- fairseq-train DATA --arch ARCH ...",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR",
        help="write experiment.yaml and deepspeed.json into this new folder; with --eval-bleu and "
        "without --valid also the validation text, from the data of fairseq")  # fmt: skip
    add("--valid", nargs=2, metavar=("SOURCE", "TARGET"),
        help="files with the raw validation text, for BLEU")  # fmt: skip
    add("--flags", action="store_true",
        help="print the table of all flags instead, docs/FROM_FAIRSEQ.md")  # fmt: skip
    return parser
