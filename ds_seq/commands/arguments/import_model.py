"""The arguments of `ds-seq import`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ds_seq.commands.arguments.shared import EXPORT_DTYPES
from ds_seq.commands.parser import CommandParser, command_parser
from ds_seq.errors import UserError

TOOLKITS = ("fairseq", "huggingface")
_ONLY = {
    "fairseq": (
        "dict",
        "target_dict",
        "codes",
        "sentencepiece",
        "moses",
        "lang_dict",
        "user_symbols",
        "ema",
        "average",
    ),
    "huggingface": ("source_code", "target_code", "source_prefix", "no_compare", "link"),
}
"""Options that matter for one toolkit."""


def build_parser() -> CommandParser:
    """Return the parser of `ds-seq import`."""
    parser = command_parser(
        "import",
        "Make a run folder of a checkpoint of another toolkit: generate, export and "
        "train.init_from take it. Every tensor is accounted for, and the result is compared with "
        "what the checkpoint computes. No code in the checkpoint runs. fairseq is not needed; "
        "transformers is, for the comparison, and the package tokenizers.",
        reads_experiments=False,
    )
    add = parser.add_argument
    add("toolkit", choices=TOOLKITS, help="where the checkpoint comes from")
    add("model", type=Path,
        help="of fairseq: a file such as checkpoint_best.pt; experts that DeepSpeed wrote are "
        "looked for in deepspeed_moe/ next to it, and those of the branch moe in its files of all "
        "ranks. Of Hugging Face: a folder of `save_pretrained` "
        "with model and tokenizer")  # fmt: skip
    add("--dict", type=Path, metavar="FILE",
        help="fairseq: dict.LANG.txt of the source, or of both sides")  # fmt: skip
    add(
        "--target-dict",
        type=Path,
        metavar="FILE",
        help="fairseq: that of the target, if it differs",
    )
    add("--out", type=Path, required=True, help="new run folder, or file NAME.safetensors")
    add("--codes", type=Path, metavar="FILE", help="fairseq: merges of subword-nmt or fastBPE")
    add("--sentencepiece", type=Path, metavar="FILE", help="fairseq: SentencePiece model")
    add("--moses", action="store_true", help="fairseq: text was tokenized by Moses' rules")
    add("--lang-dict", type=Path, metavar="FILE",
        help="fairseq: languages of a multilingual model, if its training read them")  # fmt: skip
    add("--user-symbols", metavar="SYMBOLS",
        help="fairseq: symbols of the dictionary with commas between them that are never split, "
        "such as language tags of sources")  # fmt: skip
    add("--ema", action="store_true",
        help="fairseq: take the averages of weights that --store-ema stored")  # fmt: skip
    add("--average", type=Path, nargs="+", metavar="FILE",
        help="fairseq: average with the weights of more checkpoints of the training")  # fmt: skip
    add("--source-lang", help="language code, also of a language model; default: that of the "
        "checkpoint")  # fmt: skip
    add("--target-lang", help="language code; default: that of the checkpoint")
    add("--source-code", metavar="SYMBOL",
        help="huggingface: the model's symbol for the source language, such as eng_Latn; default: "
        "the one that --source-lang names")  # fmt: skip
    add("--target-code", metavar="SYMBOL", help="huggingface: that of the target language")
    add("--source-prefix", metavar="TEXT",
        help="huggingface: text in front of every source, such as 'translate English to German: ' "
        "with T5")  # fmt: skip
    add("--no-compare", action="store_true", help="huggingface: do not compare with transformers")
    add("--link", action="store_true",
        help="huggingface: leave the weights in the folder; with --expert-parallel, each rank "
        "reads only its own experts")  # fmt: skip
    add("--text", type=Path, metavar="FILE",
        help="lines of source text to compare on; default: pieces of the vocabulary")  # fmt: skip
    add("--dtype", choices=EXPORT_DTYPES, default="fp32", help="precision on disk")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the arguments, and refuse those of another toolkit.

    Raises:
        UserError: an option belongs to another toolkit, or one is missing.
    """
    options = build_parser().parse_intermixed_args(argv)
    for toolkit, names in _ONLY.items():
        given = [name for name in names if vars(options)[name]]
        if toolkit != options.toolkit and given:
            option = f"--{given[0].replace('_', '-')}"
            raise UserError(f"{option}: is for {toolkit}, not for {options.toolkit}; leave it out")
    if options.toolkit == "fairseq" and options.dict is None:
        raise UserError("--dict FILE: is needed; give the dict.LANG.txt of the checkpoint")
    return options
