"""How long `ds-seq runs --serve` takes to answer about many long runs.

    python benchmarks/runs_page.py --out /tmp/runs_page --runs 200 --lines 10000

Makes runs with experts whose records are those of a real one, starts the server, and asks for the
table, for settings, curves, expert maps and translations: first when it has read nothing, then
again, then after a record was added to each log. Each request has two times: processor time of the
server, which other work on the machine does not change, and the time until the answer is there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import table

_LAYERS, _EXPERTS, _VALIDATE_EVERY = 4, 8, 20
_ASKED = 4  # runs that are looked at


def records(num_lines: int) -> Iterator[str]:
    """Yield the lines of a log."""
    for number in range(1, num_lines + 1):
        is_valid = number % _VALIDATE_EVERY == 0
        update = 50 * (number - is_valid)
        figures: dict[str, object] = {"kind": "valid" if is_valid else "train", "update": update}
        figures |= {"time": 1.7e9 + 30 * number, "loss": 9.0 / (1 + number) ** 0.1, "tokens": 4e5}
        figures |= {f"figure_{n}": 1.0 / (n + number) for n in range(20)}
        for layer in range(_LAYERS):
            load = [round(1 / _EXPERTS + 0.01 * expert, 16) for expert in range(_EXPERTS)]
            figures |= {f"moe/layer{layer}/load": load, f"moe/layer{layer}/entropy": 1.0 / number}
        if is_valid:
            text = "\n\n".join(
                f"source       sentence {n}\ntranslation  version {update} {'word ' * 20}"
                for n in range(5)
            )
            figures |= {"samples": text, "bleu": 20.0, "best_by": "bleu", "best_score": 20.0}
        yield json.dumps(figures) + "\n"


def make_runs(folder: Path, num_runs: int, num_lines: int) -> int:
    """Write run folders that differ in a setting; return the bytes of a log."""
    log = "".join(records(num_lines))
    for number in range(num_runs):
        run = folder / f"group-{number % 10}" / f"run-{number}"
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(log, encoding="utf-8")
        start = {"time": "2026-11-28T10:00:00+0000", "update": 0, "last_update": 10**6}
        (run / "starts.jsonl").write_text(json.dumps({**start, "parameters": 10**7}) + "\n")
        settings = {f"section_{n}": {f"key_{k}": n + k for k in range(20)} for n in range(15)}
        settings["optimizer"] = {"lr": number}
        history = {"versions": [{"config": settings}]}
        (run / "history.json").write_text(json.dumps(history), encoding="utf-8")
    return len(log)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Serve the runs; yield the address, and the number of the process."""
    command = [sys.executable, "-m", "ds_seq", "runs", str(folder), "--serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"at (http://\S+)/", process.stderr.readline())
        assert found is not None
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait()


def processor_time(process: int) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(address: str, process: int, path: str) -> tuple[float, float, int]:
    """Return processor time and time of a request in seconds, and the bytes of its answer."""
    began, computed = time.perf_counter(), processor_time(process)
    with urllib.request.urlopen(f"{address}/{path}", timeout=600) as answer:
        size = len(answer.read())
    return processor_time(process) - computed, time.perf_counter() - began, size


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--lines", type=int, default=10_000)
    args = parser.parse_args()
    size = make_runs(args.out, args.runs, args.lines)
    chosen = "&".join(f"run=group-{n % 10}/run-{n}" for n in range(_ASKED))
    figures = "figure=loss&figure=figure_1&figure=valid/bleu&x=updates"
    one = "run=group-0/run-0"
    paths = {
        "table": "runs",
        "settings of all": "differences",
        f"3 curves of {_ASKED} runs": f"curves?{chosen}&{figures}",
        "expert maps of a run": f"experts?{one}&of=train",
        "translations of a run": f"samples?{one}",
    }
    with served(args.out) as (address, process):

        def asked() -> dict[str, tuple[float, float, int]]:
            return {name: ask(address, process, path) for name, path in paths.items()}

        rounds = [asked(), asked()]
        for log in args.out.rglob("metrics.jsonl"):
            with log.open("a", encoding="utf-8") as file:
                file.write('{"kind": "train", "update": 1000000, "loss": 1.0}\n')
        rounds.append(asked())
    rows = []
    for name, (*_, answer) in rounds[0].items():
        cells = (f"{of[name][0]:.2f} / {of[name][1]:.2f}" for of in rounds)
        rows.append([name, *cells, f"{answer / 1000:,.0f}"])
    print(f"{args.runs} runs of {args.lines:,} lines, {size / 1e6:.1f} MB each")
    print("seconds: processor time / until the answer is there")
    print(table(["request", "first", "again", "all logs have grown", "kB"], rows))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"server: {spent.ru_utime + spent.ru_stime:.1f} s of processor time, "
        f"{spent.ru_maxrss / 1024:,.0f} MiB at most"
    )
    shutil.rmtree(args.out)


if __name__ == "__main__":
    main()
