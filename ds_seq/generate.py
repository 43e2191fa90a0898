"""Translate text with a trained model: `ds-seq generate RUN`, or this file under a launcher.

    deepspeed --num_gpus 8 ds_seq/generate.py runs/x --input text.de --output text.en

From Python: `ds_seq.load`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # When run as a script, Python puts this folder first on the path, where `data`, `config` or
    # `models` would shadow other top-level modules. Put the repository there instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ds_seq.commands import run
from ds_seq.errors import run_command


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq generate`; return the exit code."""
    return run("generate", argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
