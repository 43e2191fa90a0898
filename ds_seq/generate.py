"""Translate text with a trained model: `ds-seq generate RUN`, or this file under a launcher.

    deepspeed --num_gpus 8 ds_seq/generate.py runs/x --input text.de --output text.en

From Python: `ds_seq.load`.
"""

# ruff: noqa: E402 - the path is corrected first

import os
import sys
from collections.abc import Sequence

_FOLDER = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__" and os.path.realpath(sys.path[0]) in (_FOLDER, os.getcwd()):
    # Python has put this folder first on the path, or with `python -m` the working folder, where
    # `data` and `config`, or any file at all, would shadow other modules; see `__main__.py`.
    sys.path[0] = os.path.dirname(_FOLDER)

from ds_seq.commands import run
from ds_seq.errors import run_command


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq generate`; return the exit code."""
    return run("generate", argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
