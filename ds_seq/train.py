"""Train a model: `ds-seq train EXP.yaml`, or this file under a launcher.

    deepspeed --num_gpus 8 ds_seq/train.py EXP.yaml [key=value ...]
    torchrun --nproc_per_node 8 ds_seq/train.py EXP.yaml
    srun python ds_seq/train.py EXP.yaml
    mpirun -n 8 python ds_seq/train.py EXP.yaml

From Python: `ds_seq.fit`.
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
    """Run `ds-seq train`; return the exit code."""
    return run("train", argv)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
