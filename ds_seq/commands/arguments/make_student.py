"""The arguments of `ds-seq make-student`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.calibration import add_measured
from ds_seq.commands.arguments.shared import CHECKPOINT_HELP, EXPORT_DTYPES
from ds_seq.commands.parser import CommandParser, command_parser
from ds_seq.names import CONFIG_FILE, LAYER_MAPS, STACKS


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq make-student`."""
    parser = command_parser(
        "make-student",
        "Make a smaller model from some layers of a trained one. Embeddings, norms and output "
        "projection are copied unchanged. Does not train; prints the command for fine-tuning.",
        epilog=f"{CONFIG_FILE} in --out FOLDER is the experiment of the fine-tuning: the teacher's "
        "experiment, but starting from the student. Check its optimizer.lr, scheduler and "
        "train.max_updates, because a student needs fewer and smaller steps than its teacher; and "
        "criterion, if the student should also learn from the teacher's outputs.",
    )
    add = parser.add_argument
    add(
        "run",
        type=Path,
        help="the teacher: run folder, file or folder written by `ds-seq export`, or folder of "
        "Hugging Face",
    )
    add("overrides", nargs="*", metavar="KEY=VALUE",
        help="changes of the student's experiment, such as model.dropout=0.2")  # fmt: skip
    add("--out", type=Path, required=True,
        help="new file (NAME.safetensors) or folder to write, as `ds-seq export` does")  # fmt: skip
    for stack in STACKS:
        depth = f"number of layers of the student's {stack} (default: as in the teacher)"
        listed = "indices (from 0) of the teacher's layers to copy, instead of --copy"
        add(f"--{stack}-layers", type=int, metavar="N", help=depth)
        add(f"--{stack}-copy", metavar="I,J,...", help=listed)
    add("--copy", choices=LAYER_MAPS, default="table",
        help="which layers to copy: table, tested choices for common depths, otherwise even; even, "
        "evenly spaced from first to last; first (default: %(default)s)")  # fmt: skip
    add("--checkpoint", default="best", help=CHECKPOINT_HELP)
    add("--source-lang", help="Hugging Face: language code, if the folder names none")
    add("--target-lang", help="Hugging Face: that of the target")
    add("--no-compare", action="store_true", help="Hugging Face: do not compare with transformers")
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    add("--dense", action="store_true",
        help="merge the experts of each layer into one dense feed-forward, their average weighted "
        "by use on --data")  # fmt: skip
    add_measured(parser, "--dense")
    return parser
