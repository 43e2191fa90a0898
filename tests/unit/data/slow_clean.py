"""Clean a text so slowly that there is time to kill it: ``python -m ... FOLDER``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ds_seq.data import clean
from ds_seq.text.lines import PairPath
from ds_seq.text.look import Look
from ds_seq.text.normalize import Normalizer


class Slow(Normalizer):
    """Takes its time for each line."""

    def lines(self, texts: Sequence[str], look: Look | None = None) -> list[str]:
        time.sleep(0.01 * len(texts))
        return list(texts)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    clean.BLOCK_LINES = 10
    options = clean.CleanOptions(Slow(False, False), 1, 9, 9.0, False, False)
    text = PairPath(folder / "in.en", folder / "in.de")
    clean.clean([text], PairPath(folder / "out.en", folder / "out.de"), options, workers=2)
