#!/usr/bin/env python3
"""Convert one split of parallel text into shards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.config.data import DataConfig
from ds_seq.data.binarize import binarize
from ds_seq.data.mpi import team
from ds_seq.data.progress import Progress
from ds_seq.errors import run_command
from ds_seq.text.lines import PairPath, count_pairs
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers


def main(argv: Sequence[str]) -> int:
    """Binarize a pair of files, with all ranks under `mpirun`."""
    with team() as is_first:
        return _binarize(argv) if is_first else 0


def _binarize(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name in ("source", "target"):
        parser.add_argument(name, type=Path, help=f"{name} text, one sentence per line")
    parser.add_argument("--vocab", type=Path, required=True, help="SentencePiece model")
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
    arguments = parser.parse_args(argv)
    total = count_pairs([PairPath(arguments.source, arguments.target)])
    lock = files.Lock(arguments.out / files.LOCK_FILE, arguments.out, "wait for it")
    with lock, Progress(f"binarizing {arguments.split}", total) as progress:
        report = binarize(
            Tokenizers.shared(SentencePieceTokenizer.load(arguments.vocab)),
            arguments.source,
            arguments.target,
            arguments.out,
            arguments.split,
            languages=(arguments.languages[0], arguments.languages[1]),
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


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
