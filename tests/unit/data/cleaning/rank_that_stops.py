"""Clean with MPI; rank 1 stops in its second block: ``mpirun -n 2 python -m ... FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ds_seq.data import clean, watching
from ds_seq.data.mpi import team
from ds_seq.errors import run_command
from ds_seq.text.lines import PairPath
from ds_seq.text.look import Look
from ds_seq.text.normalize import Normalizer
from tests.unit.data.cleaning.made import EVERYTHING, corpus_in


@dataclass(frozen=True)
class Stopping(Normalizer):
    """Stops the process on rank 1 if that has written a block."""

    folder: Path = Path()

    def lines(self, texts: Sequence[str], look: Look | None = None) -> list[str]:
        own = self.folder.glob(f"out.en.partial/*.{os.getpid()}@*.index")
        if os.environ["OMPI_COMM_WORLD_RANK"] == "1" and any(path.stat().st_size for path in own):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().lines(texts, look)


def main(argv: list[str]) -> int:
    """Clean the text in a folder."""
    folder = Path(argv[0])
    corpus = corpus_in(folder, **EVERYTHING)
    usual = corpus.options.normalizer
    normalizer = Stopping(**{**vars(usual), "folder": folder})
    corpus = replace(corpus, options=replace(corpus.options, normalizer=normalizer))
    with team() as is_first:
        if is_first:
            clean.clean_corpora([corpus], PairPath(folder / "out.en", folder / "out.de"))
    return 0


if __name__ == "__main__":
    clean.BLOCK_LINES = 40
    watching.SILENCE = 6.0
    sys.exit(run_command(main, sys.argv[1:]))
