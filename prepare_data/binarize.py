#!/usr/bin/env python3
"""Convert one split of parallel text into shards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.commands.arguments.text import add_text_arguments, files_of, texts_of
from ds_seq.config.data import DataConfig
from ds_seq.data.binarize import CorpusText, binarize_corpora
from ds_seq.data.mpi import team
from ds_seq.data.progress import Progress
from ds_seq.environment import keep_freed_memory
from ds_seq.errors import UserError, run_command
from ds_seq.text.lines import count_pairs
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers


def main(argv: Sequence[str]) -> int:
    """Binarize a text, with all ranks under `mpirun`."""
    keep_freed_memory()
    with team() as is_first:
        return _binarize(argv) if is_first else 0


def _binarize(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    texts = texts_of(arguments, arguments.split, counts_invalid=False)
    files.check_not_input(arguments.out, files_of(texts))
    tokenizers = _tokenizers(arguments)
    languages = (arguments.languages[0], arguments.languages[1])
    lock = files.Lock(arguments.out / files.LOCK_FILE, arguments.out, "wait for it")
    with files.remembering():
        total = count_pairs(texts)
        with lock, Progress(f"binarizing {arguments.split}", total) as progress:
            report = binarize_corpora(
                tokenizers,
                [CorpusText("", text, languages) for text in texts],
                arguments.out,
                arguments.split,
                languages=languages,
                shard_size=arguments.shard_size,
                workers=arguments.workers,
                progress=progress,
            )
    manifest = report.manifest
    print(
        f"{manifest.pairs:,} pairs in {len(manifest.shards)} shard(s), "
        f"{manifest.src_tokens:,} + {manifest.tgt_tokens:,} tokens, "
        f"{report.src_unknown:,} + {report.tgt_unknown:,} of them unknown -> {arguments.out}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_text_arguments(parser)
    parser.add_argument("--vocab", type=Path, help="SentencePiece model of both sides")
    for name in ("source", "target"):
        parser.add_argument(
            f"--{name}-vocab", type=Path, help=f"SentencePiece model of the {name} side"
        )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--split", required=True, help="train, valid or test")
    parser.add_argument(
        "--languages",
        nargs=2,
        required=True,
        metavar=("SOURCE", "TARGET"),
        help="language codes, such as en de",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=DataConfig.model_fields["shard_size"].default,
        help="pairs per shard",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes, without mpirun"
    )
    return parser


def _tokenizers(arguments: argparse.Namespace) -> Tokenizers:
    """Return one tokenizer for both sides, or one for each."""
    own = [arguments.source_vocab, arguments.target_vocab]
    given = [path for path in own if path is not None]
    if len(given) == 1 or bool(given) == (arguments.vocab is not None):
        raise UserError("give --vocab, or both --source-vocab and --target-vocab")
    if not given:
        return Tokenizers.shared(SentencePieceTokenizer.load(arguments.vocab))
    source, target = map(SentencePieceTokenizer.load, given)
    return Tokenizers(source, target)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
