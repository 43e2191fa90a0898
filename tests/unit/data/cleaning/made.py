"""Random text that every filter finds something in, and what cleaning makes of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ds_seq.config.clean import CleanConfig
from ds_seq.data.clean import Corpus
from ds_seq.data.cleaning.build import build_corpus
from ds_seq.text.lines import PairPath

EVERYTHING: dict[str, Any] = {
    "preset": "mozilla",
    "max_words": 12,
    "min_chars": 2,
    "max_chars": 60,
    "max_char_ratio": 6.0,
    "max_word_chars": 12,
    "max_repeated_chars": 4,
    "max_repeated_words": 2,
    "min_unique_ratio": 0.2,
    "min_score": 0.2,
    "max_per_source": 2,
    "max_per_target": 3,
}
_WORDS = [
    *8 * "house tree river green open small light stone water night".split(),
    *"1999 27 3.5 https://a.org me@b.org .......... дом 我 &amp; [1] ''".split(),
    "averyverylongword",
]


def make_text(folder: Path, lines: int, seed: int = 0) -> None:
    """Write `text.en`, `text.de` and `text.score`."""
    draw = random.Random(seed)
    rows = []
    for _ in range(lines):
        sides = [" ".join(draw.choices(_WORDS, k=draw.randint(0, 9))) for _ in range(2)]
        kind = draw.random()
        source, target = sides
        sides = draw.choices(
            [
                (source, source.replace("e", "ä")),
                (source, target),
                (source, source),
                ("tree tree tree", "Baum Baum Baum"),
                ("aaba abba", "green open"),
                ("a short line", target),
                (source, "eine kurze Zeile"),
                ("x", "y"),
            ],
            weights=(60, 13, 5, 5, 5, 5, 5, 2),
        )[0]
        source, target = (side.encode() for side in sides)
        if kind > 0.97:
            target += b"\xff"
        rows.append((source, target, b"%.2f" % draw.random()))
        if kind < 0.2 and rows:
            rows.append((*draw.choice(rows)[:2], b"%.2f" % draw.random()))
    for name, column in zip(("en", "de", "score"), zip(*rows, strict=True), strict=True):
        (folder / f"text.{name}").write_bytes(b"".join(line + b"\n" for line in column))


def corpus_in(folder: Path, name: str = "text", **keys: Any) -> Corpus:
    """Return the corpus of `make_text` with these keys of `data.clean`."""
    inputs = [PairPath(folder / "text.en", folder / "text.de")]
    scored = {"score_files": [str(folder / "text.score")]} if "min_score" in keys else {}
    return build_corpus(name, inputs, ("en", "de"), CleanConfig(**keys, **scored))
