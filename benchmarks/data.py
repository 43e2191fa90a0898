#!/usr/bin/env python3
"""Measure the way of text to batches: speed and memory of `ds-seq prepare`, opening, the loader.

Sections:

* speed: `ds-seq prepare` (cleaning, encoding, shards, checksums; the vocabulary is given) compared
  with SentencePiece's own encoding of the same files, and with fairseq's way: its line-by-line
  SentencePiece encoding, then `fairseq-preprocess --joined-dictionary`, without any cleaning.
* memory: peak memory of `ds-seq prepare` over the number of pairs.
* opening: time and memory until the first batch of an epoch, of one large set and of 10,000 shards.
* loader: an update on batches from the disk compared with one on the same batches in memory.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from common import Goal, Section, Spread, add_common_arguments, finish, table
from experiments import CACHE, fetch_text, model_section
from fairseq_venv import make_fairseq_venv
from measured import Cost, measure

from ds_seq.config.yaml_file import to_yaml
from ds_seq.text.sentencepiece import SentencePieceTokenizer

HERE = Path(__file__).resolve().parent
SIDES = [sys.executable, str(HERE / "data_sides.py")]
VOCAB_SIZE = 16_000
VOCAB_SENTENCES = 30_000
LANGUAGES = ("en", "de")
_PREPROCESS = "from fairseq_cli.preprocess import cli_main; cli_main()"


class Setup(NamedTuple):
    """What all sections share."""

    arguments: argparse.Namespace
    folder: Path
    pairs: list[tuple[str, str]]
    vocab: Path


def main(argv: Sequence[str]) -> int:
    """Run the sections."""
    arguments = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="ds_seq_data_", dir=arguments.work) as folder:
        pairs = _read_pairs(arguments)
        text = _write_text(Path(folder) / "text", pairs, len(pairs))
        vocab = Path(folder) / "vocab.model"
        SentencePieceTokenizer.train(
            text,
            size=VOCAB_SIZE if not arguments.quick else 4000,
            model_type="unigram",
            character_coverage=1.0,
            input_sentence_size=VOCAB_SENTENCES if not arguments.quick else 20_000,
            normalization="identity",
            byte_fallback=False,
        ).save(vocab)
        setup = Setup(arguments, Path(folder), pairs, vocab)
        sections = []
        for name in arguments.only:
            sections.append(SECTIONS[name](setup))
            print(f"{sections[-1].title}:\n{sections[-1].body}", file=sys.stderr, flush=True)
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in sections)
    goals = [goal for section in sections for goal in section.goals]
    return finish("From text to batches", body, goals, arguments.record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--fairseq", type=int, nargs="*", choices=(1, 2), default=(1, 2), metavar="N",
        help="of section speed: numbers of processes of fairseq, which takes the most time by far",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, help="of the text to use (default: all)")
    parser.add_argument(
        "--tsv", type=Path, metavar="FILE",
        help="source<TAB>target lines, also .xz, instead of fetched text",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, default=CACHE, help="for text and fairseq")
    parser.add_argument(
        "--fairseq-venv", type=Path, help="environment of fairseq (default: cached)"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the files (default: that of the system)"
    )
    parser.add_argument(
        "--memory-pairs", type=int, nargs=2, default=(500_000, 8_000_000), help="of section memory"
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.pairs = 1, arguments.pairs or 30_000
        arguments.memory_pairs = (20_000, 100_000)
    return arguments


def _read_pairs(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    if arguments.tsv is None:
        raw = fetch_text(arguments.cache, None) / "raw"
        sides = [
            (raw / f"train.{language}").read_text(encoding="utf-8").split("\n")
            for language in LANGUAGES
        ]
        pairs = [pair for pair in zip(*sides, strict=True) if all(pair)]
    else:
        opener: Callable[..., Any] = lzma.open if arguments.tsv.suffix == ".xz" else open
        with opener(arguments.tsv, "rt", encoding="utf-8", newline="\n") as file:
            pairs = [tuple(line.rstrip("\n").split("\t")[:2]) for line in file]
    return pairs[: arguments.pairs]


def _write_text(folder: Path, pairs: Sequence[tuple[str, str]], number: int) -> list[Path]:
    """Write pairs to two files, repeated with a number at their ends if there are too few."""
    folder.mkdir()
    paths = [folder / f"train.{language}" for language in LANGUAGES]
    for side, path in enumerate(paths):
        lines = (
            f"{pair[side]} {repeat}\n" if repeat else f"{pair[side]}\n"
            for repeat in count()
            for pair in pairs
        )
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(islice(lines, number))
    return paths


def _experiment(setup: Setup, name: str, text: Sequence[Path]) -> Path:
    """Write an experiment whose data folder has the vocabulary already."""
    source, target = map(str, text)
    data = setup.folder / name
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    shutil.copy(setup.vocab, data / "vocab.model")
    experiment = {
        "name": name,
        "data": {
            "source_lang": LANGUAGES[0],
            "target_lang": LANGUAGES[1],
            "dir": str(data),
            "raw": {"train": {"source": source, "target": target}},
        },
        "model": model_section(2, 128, 512, 0.1),
        "train": {"max_tokens": 2048, "validate_every": None, "save_every": 10**9},
    }
    path = data / "experiment.yaml"
    path.write_text(to_yaml(experiment), encoding="utf-8")
    return path


def _prepare(setup: Setup, name: str, text: Sequence[Path], workers: int) -> Cost:
    path = _experiment(setup, name, text)
    return measure([sys.executable, "-m", "ds_seq", "prepare", path, f"data.workers={workers}"])


def speed(setup: Setup) -> Section:
    """Compare `ds-seq prepare` with SentencePiece and fairseq, with one process and two."""
    text = [setup.folder / "text" / f"train.{language}" for language in LANGUAGES]
    arguments = setup.arguments
    costs: dict[str, list[Cost]] = {}
    for _ in range(arguments.rounds):
        costs.setdefault("SentencePiece", []).append(
            measure([*SIDES, "sentencepiece", setup.vocab, *text])
        )
        costs.setdefault("in memory", []).append(
            measure([*SIDES, "sentencepiece_in_memory", setup.vocab, *text])
        )
        for workers in (1, 2):
            name = f"ds-seq prepare, {workers} process(es)"
            costs.setdefault(name, []).append(_prepare(setup, "speed", text, workers))
    for workers in arguments.fairseq:
        fairseq = make_fairseq_venv(arguments.fairseq_venv or arguments.cache / "fairseq-venv")
        costs[f"fairseq, {workers} process(es)"] = [_fairseq(setup, fairseq, text, workers)]
    return _report_speed(costs, setup)


def _fairseq(setup: Setup, python: Path, text: Sequence[Path], workers: int) -> Cost:
    """Encode both sides, one after the other or at the same time, and preprocess."""
    out = setup.folder / "fairseq"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    encode = [
        [python, HERE / "data_sides.py", "fairseq_encode", setup.vocab, path, out / path.name]
        for path in text
    ]
    costs = [measure(*encode)] if workers > 1 else [measure(command) for command in encode]
    sides = ["--source-lang", LANGUAGES[0], "--target-lang", LANGUAGES[1]]
    options = ["--trainpref", out / "train", "--destdir", out / "bin", "--joined-dictionary"]
    command = [python, "-c", _PREPROCESS, *sides, *options, "--workers", str(workers)]
    costs.append(measure(command))
    return Cost(
        sum(cost.seconds for cost in costs),
        sum(cost.cpu_seconds for cost in costs),
        max(cost.peak_bytes for cost in costs),
        "",
    )


def _report_speed(costs: dict[str, list[Cost]], setup: Setup) -> Section:
    one, two = (costs[f"ds-seq prepare, {n} process(es)"] for n in (1, 2))
    own = costs["SentencePiece"]
    calls = [json.loads(cost.output)["cpu_seconds"] for cost in costs.pop("in memory")]
    rows = [
        [
            name,
            Spread.of([cost.seconds for cost in found]).text(1),
            Spread.of([cost.cpu_seconds for cost in found]).text(1),
            f"{min(cost.cpu_seconds for cost in found) / min(c.cpu_seconds for c in own):.2f}",
        ]
        for name, found in costs.items()
    ]
    best = {name: min(cost.cpu_seconds for cost in found) for name, found in costs.items()}
    to_own = Spread.of([a.cpu_seconds / b.cpu_seconds for a, b in zip(one, own, strict=True)])
    to_calls = Spread.of([a.cpu_seconds / b for a, b in zip(one, calls, strict=True)])
    gain = max(a.seconds / b.seconds for a, b in zip(one, two, strict=True))
    header = ["system", "seconds", "processor seconds", "to SentencePiece"]
    body = (
        f"{table(header, rows)}\n\n"
        f"{len(setup.pairs):,} pairs. SentencePiece reads both files and writes ids, by batch "
        "calls and one thread. ds-seq prepare is the whole command, with the start of Python and "
        "the report; fairseq's way is its encoding and its command, which builds a dictionary and "
        "cleans nothing. Ratios are of processor time. To SentencePiece's calls alone, without "
        f"reading and writing, ds-seq prepare takes {to_calls.text(2)}."
    )
    goals = [
        Goal(
            f"fairseq's processor time to ds-seq's, {n} process(es)",
            best[f"fairseq, {n} process(es)"] / best[f"ds-seq prepare, {n} process(es)"],
            12,
            "x",
        )
        for n in setup.arguments.fairseq
    ]
    goals += [
        Goal("ds-seq's to SentencePiece's", to_own.median, 1.3, "x", at_least=False),
        Goal("two processes to one (best round, time)", gain, 1.8, "x"),
    ]
    return Section("Speed", body, goals)


def memory(setup: Setup) -> Section:
    """Measure the peak memory of `ds-seq prepare` for two numbers of pairs."""
    rows, peaks = [], []
    numbers = setup.arguments.memory_pairs
    for number in numbers:
        text = _write_text(setup.folder / f"text{number}", setup.pairs, number)
        cost = _prepare(setup, "memory", text, 1)
        peaks.append(cost.peak_bytes)
        rows.append([f"{number:,}", f"{cost.peak_bytes / 2**20:,.0f}", f"{cost.seconds:,.0f}"])
        shutil.rmtree(setup.folder / f"text{number}")
        shutil.rmtree(setup.folder / "memory")
    growth = (peaks[1] - peaks[0]) / (numbers[1] - numbers[0])
    body = (
        f"{table(['pairs', 'peak MiB', 'seconds'], rows)}\n\nDifferent pairs: the text is repeated "
        "with a number at the end of each line. Pages of mapped files that are in memory count."
    )
    goal = Goal("growth of the peak", growth, 16, " bytes a pair", at_least=False)
    return Section("Memory", body, [goal])


def _shards(setup: Setup, name: str, num_pairs: int, shard_size: int) -> Path:
    """Write a set of shards of real sentences, repeated."""
    import numpy as np

    from ds_seq.data.shards import ShardWriter
    from ds_seq.data.source import TokenBlock

    tokenizer = SentencePieceTokenizer.load(setup.vocab)
    sample = setup.pairs[:50_000]
    eos = tokenizer.symbols.eos
    blocks = [
        TokenBlock.of(
            [[*ids, eos] for ids in tokenizer.encode_lines([pair[side] for pair in sample])]
        )
        for side in range(2)
    ]
    blocks = [TokenBlock(block.tokens.astype(np.uint16), block.lengths) for block in blocks]
    folder = setup.folder / name
    options: dict[str, Any] = {"languages": LANGUAGES, "shard_size": shard_size}
    with ShardWriter(
        folder, "train", vocab_hash=tokenizer.fingerprint, vocab_size=len(tokenizer), **options
    ) as writer:
        for _ in range(-(-num_pairs // len(sample))):
            writer.add_block(*blocks)
    return folder


def opening(setup: Setup) -> Section:
    """Measure the opening of one large set, and of 10,000 shards."""
    quick = setup.arguments.quick
    sizes = {"few large shards": (5_000_000, 1_000_000), "10,000 shards": (5_000_000, 500)}
    if quick:
        sizes = {"few large shards": (200_000, 100_000), "1,000 shards": (200_000, 200)}
    rows, found = [], {}
    for name, (num_pairs, shard_size) in sizes.items():
        folder = _shards(setup, name.replace(" ", "_"), num_pairs, shard_size)
        costs = [
            json.loads(measure([*SIDES, "opening", folder, "4096"]).output)
            for _ in range(setup.arguments.rounds)
        ]
        best = found[name] = {key: min(cost[key] for cost in costs) for key in costs[0]}
        rows.append(
            [
                name,
                f"{best['pairs']:,}",
                f"{best['shards']:,}",
                f"{best['open_seconds']:.2f}",
                f"{best['open_bytes'] / 2**20:.0f}",
                f"{best['first_seconds']:.2f}",
                f"{best['first_bytes'] / 2**20:.0f}",
            ]
        )
        shutil.rmtree(folder)
    header = ["set", "pairs", "shards", "opened, s", "MiB", "first batch, s", "peak MiB"]
    body = (
        f"{table(header, rows)}\n\nIn a new process, after its imports; the best of "
        f"{setup.arguments.rounds}. The first batch includes the limits of lengths, the order of "
        "the epoch and the padding."
    )
    large = found[next(iter(sizes))]
    goals = [
        Goal("first batch of a large set", large["first_seconds"], 2, " s", at_least=False),
        Goal("its memory", large["first_bytes"] / 1e6, 300, " MB", at_least=False),
    ]
    return Section("Opening", body, goals)


def loader(setup: Setup) -> Section:
    """Compare updates on batches from the disk with updates on the same batches in memory."""
    text = [setup.folder / "text" / f"train.{language}" for language in LANGUAGES]
    path = _experiment(setup, "loader", text)
    measure([sys.executable, "-m", "ds_seq", "prepare", path])
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    rounds, updates = (3, 4) if setup.arguments.quick else (9, 8)
    cost = measure([*SIDES, "loader", path, str(threads), str(rounds), str(updates)])
    times = json.loads(cost.output)
    ratio = Spread.of([a / b for a, b in zip(times["disk"], times["memory"], strict=True)])
    update = Spread.of([seconds / updates * 1000 for seconds in times["memory"]])
    body = (
        f"{rounds} rounds of {updates} updates of a model of width 128 (2 + 2 layers) on "
        f"{times['device']}, {threads} thread(s), batches of at most 2,048 tokens. An update on "
        f"batches in memory takes {update.text(0)} ms; on new batches from the disk "
        f"{ratio.text(3)} times as long."
    )
    goals = [Goal("update on new batches to one on kept batches", ratio.median, 1.03, "x", False)]
    return Section("Loader", body, goals)


SECTIONS: dict[str, Callable[[Setup], Section]] = {
    "speed": speed,
    "memory": memory,
    "opening": opening,
    "loader": loader,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
