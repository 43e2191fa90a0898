"""generation.py: a single thread of ds_seq and CTranslate2, for several widths and beams.

Processor time counts, so other load on the machine matters less, and both have their best batch
size. The peak of the machine's matrix products is measured before and after, by the same process.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Goal, Section, Spread, table
from parity_sides import Hypothesis
from worker import Block, Worker

from ds_seq.modules.packed import pack

HERE = Path(__file__).resolve().parent
OURS, OTHER = "ds_seq", "CTranslate2"
PAIR = dict.fromkeys((OURS, OTHER), sys.executable)
GOAL = 1.0
_PEAK_SIZE, _PEAK_CALLS, _PEAK_TURNS = 1024, 3, 7


@dataclass(frozen=True)
class Case:
    """A model and what it translates.

    Attributes:
        name: width and layers.
        job: job of `generation_sides.py`, without system and beam.
        count: number of sentences.
        differences: (beam, our translations, theirs) -> sentences that differ, with the cause.
    """

    name: str
    job: dict[str, Any]
    count: int
    differences: Callable[[int, list[Hypothesis], list[Hypothesis]], list[str]]


def widths_section(
    cases: Sequence[Case], beams: Sequence[int], rounds: int, folder: Path, real: str
) -> Section:
    """Return the section.

    Args:
        cases: the models.
        beams: beam widths; each is measured with every model.
        rounds: number of rounds, in each of which both systems translate everything.
        folder: existing folder for files of the children.
        real: end of a difference without a cause.
    """
    rows, goals, notes = [], [], []
    peaks = [matmul_peak()]
    for case in cases:
        for beam in beams:
            blocks, versions, found = measured(case, beam, rounds, folder, PAIR)
            ours, other = ([block.cpu_seconds for block in blocks[n]] for n in (OURS, OTHER))
            ratio = Spread.of([b / a for a, b in zip(ours, other, strict=True)])
            differences = case.differences(beam, found[OURS], found[OTHER])
            notes += [f"{case.name}, beam {beam}: {one}" for one in differences]
            rows.append(
                [
                    case.name,
                    str(beam),
                    *(f"{case.count / statistics.median(s):,.1f}" for s in (ours, other)),
                    ratio.text(2),
                    *(versions[name].rpartition("batches of ")[2] for name in (OURS, OTHER)),
                    f"{case.count - len(differences)} of {case.count}",
                ]
            )
            name = f"{OURS} to {OTHER}, one thread, {case.name}, beam {beam}"
            goals.append(Goal(name, ratio.median, GOAL, "x"))
    peaks.append(matmul_peak())
    header = ["model", "beam", f"{OURS}, sentences per CPU second", OTHER, "ratio"]
    header += [f"batches of {OURS}", f"of {OTHER}", "equal translations"]
    body = (
        f"{table(header, rows)}\n\nMedians (and extremes) of {rounds} rounds; one thread, float32. "
        f"Peak of this machine's matrix products: {peaks[0]:.0f} GFLOP/s before and "
        f"{peaks[1]:.0f} after." + "".join(f"\n- {note}" for note in notes)
    )
    goals.append(
        Goal(
            "differences without a cause",
            sum(note.endswith(real) for note in notes),
            0,
            at_least=False,
        )
    )
    return Section("Widths and beams, one thread", body, goals)


def matmul_peak() -> float:
    """Return billions of operations per second of processor time in a large packed product."""
    product = pack(torch.randn(_PEAK_SIZE, _PEAK_SIZE), None)
    assert product is not None, "this build of torch has no oneDNN"
    x = torch.randn(_PEAK_SIZE, _PEAK_SIZE)
    torch.set_num_threads(1)
    best = 0.0
    for _ in range(_PEAK_TURNS):
        start = time.process_time()
        for _ in range(_PEAK_CALLS):
            product(x, "none")
        spent = time.process_time() - start
        best = max(best, 2e-9 * _PEAK_SIZE**3 * _PEAK_CALLS / spent)
    return best


def measured(
    case: Case, beam: int, rounds: int, folder: Path, systems: Mapping[str, str]
) -> tuple[dict[str, list[Block]], dict[str, str], dict[str, list[Hypothesis]]]:
    """Let systems take turns with one thread; return times, versions and translations of each.

    Args:
        case: the model and its sentences.
        beam: beam width.
        rounds: number of rounds.
        folder: existing folder for files of the children.
        systems: names in `generation_sides.SYSTEMS`, with the interpreter of each.
    """
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    blocks: dict[str, list[Block]] = {name: [] for name in systems}
    answers = {name: folder / f"{name}.answer.json" for name in systems}
    with contextlib.ExitStack() as stack:
        workers = []
        for name, answer in answers.items():
            job = {"system": name, "int8": False, "beam": beam, "answer": str(answer)}
            path = folder / f"{name}.json"
            path.write_text(json.dumps(case.job | job), encoding="utf-8")
            command = [systems[name], str(HERE / "generation_sides.py"), str(path)]
            worker = Worker(name, command, folder / f"{name}.log", environment)
            workers.append(stack.enter_context(worker))
        for _ in range(rounds):
            for worker in workers:
                blocks[worker.name].append(worker.run(1))
        for worker in workers:
            worker.save()
        versions = {worker.name: worker.versions for worker in workers}
    found = {
        name: [Hypothesis(*one) for one in json.loads(answer.read_text(encoding="utf-8"))]
        for name, answer in answers.items()
    }
    return blocks, versions, found
