#!/usr/bin/env python3
"""Speed of ds_seq on a GPU: products, attention, losses, layers, training steps, beam search.

    python benchmarks/gpu.py --out FOLDER [--budget 330]      all sections, the most important first
    python benchmarks/gpu.py --out FOLDER --only train_dense,loss --tokens 16384
    python benchmarks/gpu.py --out FOLDER --tiny              the same at toy sizes, even on a CPU

Every section runs in a separate process with a time limit, so that one that hangs, crashes or runs
out of memory does not affect the others. Figures go to FOLDER/bench.json after each section, the
sections' output to FOLDER/bench.log, a summary to standard output. The text is synthetic.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from gpu_sections.bench import Bench, Section, Sizes, device_name
from gpu_sections.ceilings import attention, machine
from gpu_sections.corners import corners
from gpu_sections.layers import moe_layer
from gpu_sections.losses import loss
from gpu_sections.measure import clear
from gpu_sections.report import summary
from gpu_sections.searching import generate
from gpu_sections.training import Variant, train, train_compiled, train_many_experts

_LEAST = 15.0  # minimum of remaining seconds to begin a section
_MARGIN = 3.0  # seconds before its limit at which a section is stopped


def _few_experts(precision: Any = "bf16", all_sizes: bool = True) -> Section:
    return lambda bench: train(
        bench, Variant(precision, bench.sizes.experts[0], all_sizes=all_sizes)
    )


def _dense(**options: Any) -> Section:
    return lambda bench: train(bench, Variant(**options))


class Entry(NamedTuple):
    """A section and its time limit in seconds."""

    section: Section
    seconds: float


# the most important first
SECTIONS = {
    "machine": Entry(machine, 40),
    "train_dense": Entry(_dense(), 75),
    "corners": Entry(corners, 30),
    "attention": Entry(attention, 60),
    "generate": Entry(generate, 75),
    "train_moe_small": Entry(_few_experts(), 75),
    "moe_layer": Entry(moe_layer, 50),
    "loss": Entry(loss, 50),
    # cost of DeepSpeed's own checks, which ds_seq turns off
    "train_dense_checked": Entry(_dense(engine="zero1_checked", all_sizes=False), 45),
    "train_dense_cudnn": Entry(_dense(cudnn=True, all_sizes=False, detail=False), 50),
    "train_moe_large": Entry(train_many_experts, 100),
    # cost of the engine
    "train_dense_plain": Entry(_dense(engine="plain"), 50),
    "train_dense_fp16": Entry(_dense(precision="fp16", all_sizes=False), 45),
    "train_moe_fp16": Entry(_few_experts("fp16", all_sizes=False), 60),
    "compiled": Entry(train_compiled, 110),
    "train_dense_zero0": Entry(_dense(engine="zero0", all_sizes=False), 45),
}


def main(argv: Sequence[str]) -> int:
    """Run one section here, or all in separate processes; return the exit status."""
    arguments = _parse(argv)
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    if arguments.section:
        return _run_section(arguments)
    return _run_here(arguments) if arguments.one_process else _run_all(arguments)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_bench_out"), help="folder of the figures"
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="the only batch size to measure; default: several"
    )
    parser.add_argument("--budget", type=float, default=330.0, help="seconds for all sections")
    parser.add_argument(
        "--only",
        type=_names,
        default=list(SECTIONS),
        metavar="A,B",
        help=f"sections, separated by commas, of: {', '.join(SECTIONS)}",
    )
    parser.add_argument("--one-process", action="store_true", help="no isolation, no time limits")
    parser.add_argument("--section", choices=SECTIONS, help="run one section in this process")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of that section")
    return parser.parse_args(argv)


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such section: {', '.join(unknown)}")
    return names


def _bench(arguments: argparse.Namespace, seconds: float) -> Bench:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(
        Sizes.choose(arguments.tiny, arguments.tokens), device, time.monotonic() + seconds
    )
    bench.figures["device"] = device_name(device)
    return bench


def _measure(name: str, bench: Bench) -> dict[str, Any]:
    """Return the figures of a section, with the key `error` if it failed."""
    begun = time.monotonic()
    name_of_device = bench.figures["device"]
    try:
        SECTIONS[name].section(bench)
    except Exception as error:
        traceback.print_exc()
        bench.figures["error"] = f"{type(error).__name__}: {str(error)[:600]}"
        bench.figures["trace"] = traceback.format_exc()[-1500:]
    bench.figures["seconds"] = round(time.monotonic() - begun, 1)
    return {**bench.figures, "device": name_of_device}


def _run_section(arguments: argparse.Namespace) -> int:
    """Run one section in this process; write the figures so far if its time runs out."""
    since_start = time.time() - psutil.Process().create_time()  # includes the imports
    seconds = max(arguments.seconds - since_start - _MARGIN, 1.0)
    bench = _bench(arguments, seconds)
    target = _section_file(arguments.out, arguments.section)

    def out_of_time() -> None:
        cut = f"after {arguments.seconds:.0f} s"
        for _ in range(20):
            try:
                figures = copy.deepcopy(bench.figures)
                target.write_text(json.dumps({**figures, "cut": cut}, indent=1), encoding="utf-8")
                break
            except RuntimeError:  # the section may be writing to it
                time.sleep(0.01)
        os._exit(3)  # even if a call hangs

    timer = threading.Timer(seconds, out_of_time)
    timer.daemon = True
    timer.start()
    figures = _measure(arguments.section, bench)
    timer.cancel()
    target.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures)[:3000], flush=True)
    return int("error" in figures)


def _run_here(arguments: argparse.Namespace) -> int:
    """Run all sections in this process, to test the code."""
    figures: dict[str, Any] = {}
    for name in arguments.only:
        figures[name] = _measure(name, _bench(arguments, 1e9))
        print(f"{name}: {figures[name]['seconds']} s", file=sys.stderr, flush=True)
        clear()
    _write(arguments.out, figures)
    print(summary(figures))
    return int(any("error" in found for found in figures.values()))


def _run_all(arguments: argparse.Namespace) -> int:
    """Run every section in a separate process while the budget lasts."""
    end, figures = time.monotonic() + arguments.budget, {}
    with (arguments.out / "bench.log").open("w", encoding="utf-8") as log:
        for name in arguments.only:
            limit = min(SECTIONS[name].seconds, end - time.monotonic())
            if limit < _LEAST:
                figures[name] = {"skipped": "out of time"}
                continue
            figures[name] = _run_child(arguments, name, limit, log)
            _write(arguments.out, figures)
    _write(arguments.out, figures)
    print(summary(figures))
    return int(any("error" in found for found in figures.values()))


def _run_child(arguments: argparse.Namespace, name: str, limit: float, log: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--section", name, "--out", str(arguments.out)]
    command += ["--seconds", f"{limit:.1f}", *(["--tiny"] if arguments.tiny else [])]
    command += [] if arguments.tokens is None else ["--tokens", str(arguments.tokens)]
    path, begun = _section_file(arguments.out, name), time.monotonic()
    path.unlink(missing_ok=True)
    print(f"===== {name}", file=log, flush=True)
    try:
        code = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, timeout=limit + _MARGIN
        ).returncode
    except subprocess.TimeoutExpired:
        code = 124
    print(f"{name}: exit code {code}, {time.monotonic() - begun:.1f} s", flush=True)
    if not path.exists():
        return {"error": f"exit code {code}; see bench.log"}
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return figures


def _section_file(folder: Path, name: str) -> Path:
    return folder / f"section_{name}.json"


def _write(folder: Path, figures: dict[str, Any]) -> None:
    text = json.dumps(figures, indent=1) + "\n"
    (folder / "bench.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
