"""The arguments of `ds-seq init`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.parser import CommandParser, command_parser
from ds_seq.names import SIDES


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq init`."""
    parser = command_parser(
        "init",
        "Print a complete, commented experiment file for your own parallel text: two files, where "
        "line n of one translates line n of the other, or a file or folder with both sides. Save "
        "it: ds-seq init ... > my.yaml",
        epilog="Experiments for published tasks and other kinds of training: ds-seq recipes ls",
        reads_experiments=False,
    )
    add = parser.add_argument
    for split, about in (("", "training"), ("valid-", "validation"), ("test-", "test")):
        for side in SIDES:
            add(f"--{split}{side}", nargs="+", default=[], metavar="FILE",
                help=f"{about} text, {side} side")  # fmt: skip
        add(f"--{split}data", nargs="+", default=[], metavar="FILE",
            help=f"{about} text with both sides instead: .tsv, .jsonl, .tmx, .xml"
            + (", or a folder that has all splits" if not split else ""))  # fmt: skip
    add("--columns", nargs=2, type=int, metavar=("S", "T"),
        help="columns of source and target in a .tsv, from 1")  # fmt: skip
    add("--header", action="store_true", help="the first line of a .tsv names its columns")
    add("--keys", nargs=2, metavar=("S", "T"),
        help="what source and target are called in a .jsonl, .tmx, .xml or folder")  # fmt: skip
    for side in SIDES:
        add(f"--{side}-lang", metavar="CODE",
            help=f"language of the {side} (default: the end of its file name or key)")  # fmt: skip
    add("--name", help="name of the run (default: the languages, such as en-de)")
    add("--experts", type=int, default=0, metavar="N",
        help="experts in every second layer; 0: a dense model (default: %(default)s)")  # fmt: skip
    add("--from-model", type=Path, metavar="FOLDER",
        help="fine-tune this model, a run or one that `ds-seq import` wrote: its architecture, "
        "vocabulary and settings of translation, with small steps")  # fmt: skip
    add("--freeze", nargs="+", default=[], metavar="PART",
        help="with --from-model: parts to leave as they are, such as encoder or embeddings"
    )  # fmt: skip
    return parser
