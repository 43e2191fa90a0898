#!/usr/bin/env python3
"""Train one SentencePiece vocabulary on all given files (normally both sides of the text)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ds_seq.config.vocab import VocabFields
from ds_seq.errors import UserError, run_command
from ds_seq.files import check_not_input
from ds_seq.text.build import training_options
from ds_seq.text.sentencepiece import SentencePieceTokenizer


def main(argv: Sequence[str]) -> int:
    """Train and write a vocabulary."""
    default = VocabFields()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="text, one sentence per line")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    parser.add_argument("--size", type=int, default=32000, help="subwords, including special ones")
    parser.add_argument("--type", choices=("unigram", "bpe"), default="unigram", help="algorithm")
    parser.add_argument(
        "--character-coverage", type=float, default=1.0, help="0.9995 for Chinese or Japanese"
    )
    parser.add_argument(
        "--sentences",
        type=int,
        default=default.input_sentence_size,
        help="number of sampled sentences to train on; 0 = all",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument(
        "--normalization",
        default=default.normalization,
        help="rule by which the vocabulary rewrites text: identity (none), nfkc, nmt_nfkc, "
        "nfkc_cf, nmt_nfkc_cf or a file NAME.tsv",
    )
    parser.add_argument(
        "--byte-fallback",
        action="store_true",
        help="characters that no subword covers become their UTF-8 bytes, 256 more subwords",
    )
    parser.add_argument("--symbols", nargs="*", default=[], help="pieces that are never split")
    arguments = parser.parse_args(argv)
    check_not_input(arguments.out, arguments.files)
    print("training (large texts take minutes)", file=sys.stderr)
    try:
        vocab = VocabFields(
            size=arguments.size,
            model_type=arguments.type,
            character_coverage=arguments.character_coverage,
            byte_fallback=arguments.byte_fallback,
            input_sentence_size=arguments.sentences,
            normalization=arguments.normalization,
            user_symbols=arguments.symbols,
        )
    except ValidationError as error:
        reasons = [item["msg"].removeprefix("Value error, ") for item in error.errors()]
        raise UserError("\n".join(reasons)) from None
    tokenizer = SentencePieceTokenizer.train(
        arguments.files,
        size=vocab.size,
        user_symbols=vocab.user_symbols,
        seed=arguments.seed,
        **training_options(vocab),
    )
    tokenizer.save(arguments.out)
    print(f"{len(tokenizer):,} subwords -> {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
