"""Memory and time of the order of an epoch, for a rank and for ranks that share it.

    python benchmarks/order.py --pairs 50000000 [--ranks 2] [--mixed]

Lengths are drawn like those of subwords in mixed text (log-normal, 2 to 200 tokens) and lie in a
file, as those of shards do. What is measured is what a rank of a training does: open the lengths,
keep the pairs within the limits, make the batches, order the epoch, and take the first batch. With
several ranks, the first makes the order and the others map it. Times are those of the processor,
because the machine may be busy. Memory is the peak of private memory beyond that of the imports:
pages of files and of what is shared belong to no rank.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.batch import lengths_of, rows_within
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.mixing import Corpus, Mix, Stage, epoch_pairs, shares_by_size
from ds_seq.data.node_share import NodeShare

LIMIT, MAX_TOKENS = 128, 8192
_CHUNK = 1 << 20


def write_lengths(path: Path, pairs: int) -> None:
    """Write (pairs, 2) int32."""
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, pairs, _CHUNK):
            size = min(_CHUNK, pairs - start)
            source = random.lognormal(3.0, 0.7, size).clip(2, 200)
            target = (source * random.lognormal(0.05, 0.25, size)).clip(2, 200)
            file.write(np.stack([source, target], 1).astype("<i4").tobytes())


def _private_bytes() -> int:
    """Return the private memory of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class _Peak:
    """The largest private memory while a function runs, looked at every 20 ms."""

    def __enter__(self) -> _Peak:
        self.before = _private_bytes()
        self.most, self._stop = self.before, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, _private_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, _private_bytes())


def measure(
    path: Path, pairs: int, rank: int, ranks: int, mixed: bool, token: str
) -> dict[str, Any]:
    """Order the first epoch as a rank does."""
    lengths: NDArray[np.int32] = np.memmap(path, "<i4", "r", shape=(pairs, 2))
    times = {}
    with _Peak() as peak:
        start = time.process_time()
        rows = rows_within(lengths, (LIMIT, LIMIT))
        kept = lengths_of(lengths, rows)
        sampler = TokenBatchSampler(kept, MAX_TOKENS, None, 1, rank, ranks, accumulate=1)
        if ranks > 1:
            sampler = sampler.shared(NodeShare(token, makes=rank == 0))
        times["open"] = time.process_time() - start
        start = time.process_time()
        if mixed:
            half = len(kept) // 2
            corpora = [
                Corpus("a", 0, half, 1.0, 1, ""),
                Corpus("b", half, len(kept) - half, 1.0, 2, ""),
            ]
            stage = Stage("1", shares_by_size(corpora, 5.0), epoch_pairs(corpora, len(kept)))
            mix = Mix(corpora, [stage], 1, sampler)
            sampler = mix.sampler(mix.start)
        first = next(iter(sampler.batches(1)))
        times["epoch"] = time.process_time() - start
        again = time.process_time()
        next(iter(sampler.batches(2)))
        times["next epoch"] = time.process_time() - again
    return {
        "rank": rank,
        "pairs": len(kept),
        "seconds": {name: round(value, 1) for name, value in times.items()},
        "MB": round((peak.most - peak.before) / 1e6),
        "first": [int(number) for number in first[:3]],
    }


def _run(queue: Any, done: Any, *args: Any) -> None:
    queue.put(measure(*args))
    done.wait()  # others may still want to map what this one has made


def main() -> None:
    """Measure, and print one line of JSON per rank."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5_000_000)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--mixed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lengths"
        write_lengths(path, args.pairs)
        given, token = (path, args.pairs), secrets.token_hex(8)
        context = mp.get_context("spawn")
        queue, done = context.Queue(), context.Event()
        processes = [
            context.Process(
                target=_run,
                args=(queue, done, *given, rank, args.ranks, args.mixed, token),
            )
            for rank in range(args.ranks)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            print(json.dumps(queue.get()))
        done.set()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
