"""Clean with MPI; rank 1 stops after its first block: ``mpirun -n 2 python -m ... FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ds_seq.data import clean
from ds_seq.data.cleaning import ranks
from ds_seq.errors import run_command
from ds_seq.text.lines import PairPath
from tests.unit.data.cleaning.made import EVERYTHING, corpus_in


def main(argv: list[str]) -> int:
    """Clean the text in a folder."""
    folder = Path(argv[0])
    world = ranks.find_ranks(os.environ)

    def stop(amount: int) -> None:
        own = list((folder / "out.en.partial").glob(f"*.000{world.rank}.index"))
        if world.rank == 1 and own and own[0].stat().st_size:
            os.kill(os.getpid(), signal.SIGSTOP)

    clean.clean_corpora(
        [corpus_in(folder, **EVERYTHING)],
        PairPath(folder / "out.en", folder / "out.de"),
        progress=stop,
        ranks=world,
    )
    return 0


if __name__ == "__main__":
    clean.BLOCK_LINES = 40
    ranks.SILENCE = 6.0
    sys.exit(run_command(main, sys.argv[1:]))
