"""The child processes of data.py: `python data_sides.py NAME ARGUMENT ...`.

Each prints one JSON line, if anything. The functions import what they need, so that fairseq's
interpreter can run those that need no ds_seq.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def sentencepiece(model: str, *paths: str) -> None:
    """Encode files like `spm_encode --output_format=id`, by the fastest calls of its Python API."""
    from itertools import islice

    import sentencepiece as spm

    processor = spm.SentencePieceProcessor(model_file=model)
    for path in paths:
        with (
            open(path, encoding="utf-8", newline="\n") as file,
            open(f"{path}.ids", "w", encoding="utf-8") as out,
        ):
            while lines := [line.rstrip("\n") for line in islice(file, 20_000)]:
                for ids in processor.encode(lines, num_threads=1):
                    out.write(" ".join(map(str, ids)) + "\n")


def sentencepiece_in_memory(model: str, *paths: str) -> None:
    """Encode files and forget the ids; print the processor time of the calls alone."""
    import sentencepiece as spm

    processor = spm.SentencePieceProcessor(model_file=model)
    total = 0.0
    for path in paths:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        for start in range(0, len(lines), 20_000):
            block = lines[start : start + 20_000]
            begin = time.process_time()
            processor.encode(block, num_threads=1)
            total += time.process_time() - begin
    print(json.dumps({"cpu_seconds": total}))


def fairseq_encode(model: str, source: str, target: str) -> None:
    """Write pieces line by line, as fairseq's scripts/spm_encode.py does."""
    import sentencepiece as spm

    processor = spm.SentencePieceProcessor(model_file=model)
    with (
        open(source, encoding="utf-8") as file,
        open(target, "w", encoding="utf-8") as out,
    ):
        for line in file:
            print(" ".join(processor.encode(line.strip(), out_type=str)), file=out)


def opening(folder: str, max_tokens: str) -> None:
    """Open a split and make the first batch of an epoch, after everything is imported."""
    from ds_seq.data.batch import ParallelDataset
    from ds_seq.data.batching import TokenBatchSampler
    from ds_seq.data.shards import ShardReader
    from ds_seq.text.sentencepiece import SentencePieceTokenizer

    symbols = SentencePieceTokenizer.symbols
    before = _memory()
    begin = time.perf_counter()
    reader = ShardReader(folder, "train")
    opened = time.perf_counter() - begin
    after_opening = _memory("VmRSS") - before
    dataset = ParallelDataset(reader, 256, 256)
    sampler = TokenBatchSampler(dataset.lengths, int(max_tokens), seed=1, accumulate=1)
    batch = dataset.collate(next(iter(sampler.epoch(1))), symbols)
    first = time.perf_counter() - begin
    result = {
        "pairs": len(reader),
        "shards": len(reader.manifest.shards),
        "open_seconds": opened,
        "open_bytes": after_opening,
        "first_seconds": first,
        "first_bytes": _memory("VmHWM") - before,
        "tokens": batch.num_tokens,
    }
    print(json.dumps(result))


def _memory(name: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise SystemExit("this system does not report the memory of a process")


def loader(experiment: str, threads: str, rounds: str, updates: str) -> None:
    """Train with batches from the disk, and again with the same batches from memory, in turns."""
    import torch

    from ds_seq.config.load import load_experiment
    from ds_seq.data.batch import ParallelDataset
    from ds_seq.data.batching import TokenBatchSampler
    from ds_seq.data.shards import ShardReader
    from ds_seq.data.stream import BatchStream
    from ds_seq.distributed import keep_freed_memory
    from ds_seq.models import build_model
    from ds_seq.text.sentencepiece import SentencePieceTokenizer

    torch.set_num_threads(int(threads))
    keep_freed_memory()
    config = load_experiment(experiment)
    symbols = SentencePieceTokenizer.symbols
    reader = ShardReader(config.data.dir, "train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    dataset = ParallelDataset(reader, 256, 256)
    sampler = TokenBatchSampler(dataset.lengths, config.train.max_tokens, seed=1, accumulate=1)
    model = build_model(config.model, reader.vocab_size, 1, 0, 1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def update(batch: Any) -> None:
        batch = batch.to(device, non_blocking=True)
        logits = model(batch.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits, batch.labels[batch.mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if is_gpu:
            torch.cuda.synchronize()

    def turn(batches: Any) -> float:
        begin = time.perf_counter()
        for batch in batches:
            update(batch)
        return time.perf_counter() - begin

    disk, memory = [], []
    prefetch = config.train.num_prefetch
    with BatchStream(
        lambda rows: dataset.collate(rows, symbols), sampler, num_prefetch=prefetch, pin=is_gpu
    ) as stream:
        for number in range(int(rounds) + 1):
            kept: list[Any] = []

            def from_disk(kept: list[Any] = kept) -> Any:
                for _ in range(int(updates)):
                    kept.append(next(stream))
                    yield kept[-1]

            times = turn(from_disk()), turn(kept)
            if number:  # the first round warms up
                disk.append(times[0])
                memory.append(times[1])
    print(json.dumps({"disk": disk, "memory": memory, "device": str(device)}))


SIDES = {
    side.__name__: side
    for side in (sentencepiece, sentencepiece_in_memory, fairseq_encode, opening, loader)
}

if __name__ == "__main__":
    SIDES[sys.argv[1]](*sys.argv[2:])
