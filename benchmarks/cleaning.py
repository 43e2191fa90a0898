#!/usr/bin/env python3
"""Speed and memory of cleaning, each run in a process of its own, in turns.

Speed is processor time per pair, which other load on the machine changes little; the gain of a
second process is in wall time. Memory is the peak of the main process over the number of pairs,
beyond the same with few pairs; text is repeated, with the number of the repetition in each line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Goal, Spread, add_common_arguments, finish, table

HERE = Path(__file__).resolve().parents[1]
RUN = """
import json, resource, sys, time
from pathlib import Path
from ds_seq.data.clean import CleanOptions, clean
from ds_seq.text.lines import PairPath
from ds_seq.text.normalize import Normalizer

def peak():
    # in KiB; what getrusage says may be the peak of the parent process
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def main(source, target, output, workers, options):
    if options is None:
        made = CleanOptions(Normalizer(False, False), 1, 250, 3.0, True, True)
    else:
        from ds_seq.config.clean import CleanConfig
        from ds_seq.data.cleaning.build import build_clean_options
        made = build_clean_options(CleanConfig(**options), ("en", "de"))
    before = peak()
    cpu, wall = time.process_time(), time.perf_counter()
    output = PairPath(Path(output + ".s"), Path(output + ".t"))
    report = clean([PairPath(Path(source), Path(target))], output, made, workers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({
        "pairs": report.total, "kept": report.kept, "wall": wall, "main": cpu,
        "cpu": cpu + children.ru_utime + children.ru_stime, "before": before, "peak": peak(),
    }))

if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
"""
FILTERS: dict[str, dict[str, Any]] = {
    "preset: mozilla": {"preset": "mozilla"},
    "preset: nllb": {"preset": "nllb"},
    "duplicate_key: normalized_pair": {"duplicate_key": "normalized_pair"},
    "max_per_source: 1, max_per_target: 1": {"max_per_source": 1, "max_per_target": 1},
    "repeats and unique_ratio": {
        "max_repeated_chars": 10,
        "max_repeated_words": 5,
        "min_unique_ratio": 0.3,
        "unique_order": 6,
    },
}


def _run(tree: Path, folder: Path, arguments: Sequence[Any]) -> dict[str, Any]:
    script = folder / "run.py"
    script.write_text(RUN, encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(arguments)],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _repeated(path: Path, pairs: int, folder: Path) -> str:
    """Write a text of so many lines, all of them different, and return its name."""
    lines = path.read_bytes().splitlines()
    target = folder / f"{pairs}{path.suffix}"
    with open(target, "wb") as file:
        for start in range(0, pairs, len(lines)):
            mark = b" %d\n" % (start // len(lines))
            file.write(mark.join(lines[: pairs - start]) + mark)
    return str(target)


def _speed(options: argparse.Namespace, folder: Path) -> tuple[str, list[Goal]]:
    text = [str(options.source), str(options.target)]
    sides: dict[str, tuple[Path, int, dict[str, Any] | None]] = {"defaults": (HERE, 1, None)}
    if options.old is not None:
        sides["old tree"] = (options.old, 1, None)
    sides["defaults, 2 workers"] = (HERE, 2, None)
    sides |= {name: (HERE, 1, filters) for name, filters in FILTERS.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(2 if options.quick else options.rounds):
        for name, (tree, workers, filters) in sides.items():
            arguments = [*text, str(folder / "out"), workers, filters]
            found[name].append(_run(tree, folder, arguments))
            if name == "defaults":
                expected = [(folder / f"out.{side}").read_bytes() for side in "st"]
            elif filters is None:
                assert expected == [(folder / f"out.{side}").read_bytes() for side in "st"]
    first = found["defaults"]
    rows = [
        [
            name,
            Spread.of([1e6 * run["cpu"] / run["pairs"] for run in runs]).text(2),
            _ratios(runs, first, "cpu").text(2),
            _ratios(first, runs, "wall").text(2),
            f"{runs[0]['kept']:,}",
        ]
        for name, runs in found.items()
    ]
    header = ["options", "CPU us per pair", "CPU, ratio", "speed by wall time, ratio", "kept"]
    goals = []
    if options.old is not None:
        ratio = _ratios(found["old tree"], first, "cpu").median
        goals.append(Goal("defaults, speed to the old tree", ratio, 1.0, "x"))
    main = Spread.of([run["main"] / run["cpu"] for run in found["defaults, 2 workers"]]).median
    note = (
        f"{first[0]['pairs']:,} pairs. With 2 workers, the main process does {main:.0%} of the "
        "work. Equal bytes wherever options are equal."
    )
    return f"{note}\n\n{table(header, rows)}", goals


def _ratios(
    runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], figure: str
) -> Spread:
    """Return a figure of runs divided by that of others in the same round."""
    return Spread.of([run[figure] / other[figure] for run, other in zip(runs, others, strict=True)])


def _memory(options: argparse.Namespace, folder: Path) -> tuple[str, list[Goal]]:
    sizes = (200_000, 800_000) if options.quick else (500_000, 4_000_000)
    peaks, rows = [], []
    for pairs in sizes:
        text = [_repeated(path, pairs, folder) for path in (options.source, options.target)]
        run = _run(HERE, folder, [*text, str(folder / "out"), 1, {"max_per_source": 2}])
        peaks.append(1024 * run["peak"])
        rows.append([f"{pairs:,}", f"{run['peak'] / 1024:.0f}", f"{run['before'] / 1024:.0f}"])
        for name in (*text, folder / "out.s", folder / "out.t"):
            Path(name).unlink()
    growth = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    body = table(["pairs", "peak, MiB", "after imports, MiB"], rows)
    return body, [Goal("bytes of memory per further pair", growth, 16.0, at_least=False)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("source", "target"):
        parser.add_argument(name, type=Path, help=f"{name} text, one sentence per line")
    parser.add_argument("--old", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    add_common_arguments(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speed, goals = _speed(options, folder)
        memory, more = _memory(options, folder)
    body = f"### Speed\n\n{speed}\n\n### Memory\n\n{memory}"
    return finish("Cleaning", body, [*goals, *more], options.record)


if __name__ == "__main__":
    sys.exit(main())
