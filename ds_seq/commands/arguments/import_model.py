"""The arguments of `ds-seq import`."""

from __future__ import annotations

from pathlib import Path

from ds_seq.commands.arguments.shared import EXPORT_DTYPES
from ds_seq.commands.parser import CommandParser, command_parser

TOOLKITS = ("fairseq",)


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq import`."""
    parser = command_parser(
        "import",
        "Make a run folder of a checkpoint of another toolkit: generate, export and "
        "train.init_from take it. Every tensor is accounted for, and the result is compared with "
        "what the checkpoint computes. The toolkit is not needed, and no code in the checkpoint "
        "runs.",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("toolkit", choices=TOOLKITS, help="where the checkpoint comes from")
    add("checkpoint", type=Path,
        help="such as checkpoint_best.pt; experts that DeepSpeed wrote are looked for in "
        "deepspeed_moe/ next to it")  # fmt: skip
    add("--dict", type=Path, required=True, metavar="FILE",
        help="dict.LANG.txt of the source, or of both sides")  # fmt: skip
    add("--target-dict", type=Path, metavar="FILE", help="that of the target, if it differs")
    add("--out", type=Path, required=True, help="new run folder, or file NAME.safetensors")
    add("--codes", type=Path, metavar="FILE", help="merges of subword-nmt or fastBPE")
    add("--sentencepiece", type=Path, metavar="FILE", help="SentencePiece model")
    add("--moses", action="store_true", help="text was tokenized by Moses' rules")
    add("--source-lang", help="language code; default: that of the checkpoint")
    add("--target-lang", help="language code; default: that of the checkpoint")
    add("--text", type=Path, metavar="FILE",
        help="lines of source text to compare on; default: symbols of the dictionary")  # fmt: skip
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    return parser
