"""How fast pairs in fairseq's format are read and converted, compared with shards and with fairseq.

Ids are random, with lengths like those of news text: 5 to 60 tokens. All sides read the same pairs
in the same random order, batch by batch, in turns.

Shapes: N pairs.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq.cli import main as ds_seq
from ds_seq.data.fairseq import FairseqSource
from ds_seq.data.fairseq_write import indexed_writer
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import Source, TokenBlock
from ds_seq.text.fairseq_tokenizer import FairseqDictTokenizer
from ds_seq.text.tokenizer import Tokenizers

_SYMBOLS, _BATCH, _ROUNDS = 32_000, 200, 3
_CHUNK = 10_000
_LANGUAGES = ("en", "de")


def write_pairs(folder: Path, count: int) -> None:
    """Write N random pairs and their dictionary, in fairseq's format."""
    random = np.random.default_rng(1)
    folder.mkdir()
    words = "".join(f"w{number} 1\n" for number in range(_SYMBOLS - 4))
    for language in _LANGUAGES:
        (folder / f"dict.{language}.txt").write_text(words)
        with indexed_writer(folder / f"train.en-de.{language}", _SYMBOLS) as writer:
            for start in range(0, count, _CHUNK):
                lengths = random.integers(5, 61, min(_CHUNK, count - start))
                tokens = random.integers(4, _SYMBOLS, int(lengths.sum()))
                tokens[np.cumsum(lengths) - 1] = 2
                writer.add(TokenBlock(tokens, lengths))


def figures(folder: Path, python: Path, side: Path, count: int) -> Iterator[str]:
    """Yield lines of figures.

    Args:
        folder: new folder.
        python: interpreter of fairseq.
        side: script that reads with fairseq.
        count: number of pairs.
    """
    folder.mkdir()
    files = folder / "bin"
    write_pairs(files, count)
    dictionary = {"dictionary": str(files / "dict.en.txt"), "moses": False}
    vocab = {"name": "fairseq_dict", "size": _SYMBOLS, "fairseq": dictionary}
    data = {"source_lang": "en", "target_lang": "de", "dir": str(folder / "data"), "vocab": vocab}
    experiment = folder / "x.yaml"
    checks = {"metrics": [], "best": "loss"}
    experiment.write_text(json.dumps({"name": "x", "data": data, "validation": checks}))
    for option, place in (("--from-fairseq", files), ("--to-fairseq", folder / "back")):
        started = time.perf_counter()
        assert ds_seq(["convert-data", str(experiment), option, str(place)]) == 0
        yield f"{option:<16} {count / (time.perf_counter() - started):>12,.0f} pairs/s"
    same = all(
        (files / name).read_bytes() == (folder / "back" / name).read_bytes()
        for name in (
            f"train.en-de.{language}.{x}" for language in _LANGUAGES for x in ("bin", "idx")
        )
    )
    yield f"bytes there and back: {'the same' if same else 'DIFFERENT'}"
    tokenizers = Tokenizers.shared(FairseqDictTokenizer.train([], size=_SYMBOLS, **dictionary))
    order = np.random.default_rng(2).permutation(count)
    readers: dict[str, Callable[[], float]] = {
        "shards": lambda: _read(ShardReader(folder / "data", "train"), order),
        "source fairseq": lambda: _read(
            FairseqSource([files], "train", _LANGUAGES, tokenizers), order
        ),
        "fairseq itself": lambda: _read_by_fairseq(python, side, files, count),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(_ROUNDS):
        for name, read in readers.items():
            seconds[name].append(read())
    for name, found in seconds.items():
        yield f"{name:<16} {count / min(found):>12,.0f} pairs/s read, best of {_ROUNDS}"
    best = {name: min(found) for name, found in seconds.items()}
    yield (
        f"source fairseq: {best['shards'] / best['source fairseq']:.2f}x the speed of shards, "
        f"{best['fairseq itself'] / best['source fairseq']:.1f}x that of fairseq itself"
    )


def _read(source: Source, order: NDArray[np.int64]) -> float:
    """Return the seconds that it takes to read all pairs; opening is not measured."""
    started = time.perf_counter()
    for start in range(0, len(order), _BATCH):
        source.gather(order[start : start + _BATCH])
    return time.perf_counter() - started


def _read_by_fairseq(python: Path, side: Path, folder: Path, count: int) -> float:
    command = [str(python), str(side), "time", str(folder), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])
