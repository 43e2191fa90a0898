"""moe_overhead.py: whole training runs, in one process and with experts distributed over two."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Goal, Section, Spread, table
from experiments import Recipe, write_experiment
from worker import Block, Validation, Worker

from ds_seq.distributed import free_port

HERE = Path(__file__).resolve().parent
DENSE, MOE = "dense", "MoE x8 top-1"
EXPERTS = {"num_experts": 8, "top_k": 1, "placement": "both", "every": 2, "capacity_factor": None}
TRAIN_GOAL, VALID_GOAL = 0.90, 0.90


@dataclass(frozen=True)
class Runs:
    """The training to measure.

    Attributes:
        recipe: the experiment, without experts.
        folder: folder for temporary files.
        threads: total number of threads of a system's processes.
        rounds: number of turns of each system.
        updates: updates of each system per round.
        warmup: updates before the first round, not counted.
        seconds: time after which no round begins, provided there have been two.
    """

    recipe: Recipe
    folder: Path
    threads: int
    rounds: int
    updates: int
    warmup: int
    seconds: float


@dataclass(frozen=True)
class Round:
    """Results of one system in its turn."""

    trained: Block
    validated: Validation | None


def training_section(runs: Runs) -> Section:
    """Measure target tokens per second of the dense model and of experts in every second layer."""
    rounds, parameters, versions = _measure(runs, ranks=1)
    train = {name: Spread.of(_ratios(rounds, name, _train_speed)) for name in (DENSE, MOE)}
    valid = {name: Spread.of(_ratios(rounds, name, _valid_speed)) for name in (DENSE, MOE)}
    rows = [
        [
            name,
            f"{parameters[name]:,}",
            Spread.of([_train_speed(r[name]) for r in rounds]).text(),
            train[name].text(2),
            Spread.of([_valid_speed(r[name]) for r in rounds]).text(),
            valid[name].text(2),
            f"{rounds[-1][name].trained.loss:.2f}",
        ]
        for name in (DENSE, MOE)
    ]
    header = ["system", "parameters", "training, tokens/s", "to dense"]
    header += ["validation loss, tokens/s", "to dense", "last loss"]
    body = f"{table(header, rows)}\n\n{_remarks(runs, rounds, 1, versions)}"
    goals = [
        Goal(f"{MOE} to dense, training", train[MOE].median, TRAIN_GOAL, "x"),
        Goal(f"{MOE} to dense, validation loss", valid[MOE].median, VALID_GOAL, "x"),
    ]
    return Section("Training and validation", body, goals)


def parallel_section(runs: Runs, ranks: int = 2) -> Section:
    """Measure two processes: experts distributed over them, against dense data parallelism."""
    rounds, parameters, versions = _measure(runs, ranks)
    rows = [
        [
            name,
            f"{parameters[name]:,}",
            Spread.of([_train_speed(r[name]) for r in rounds]).text(),
            Spread.of(_ratios(rounds, name, _train_speed)).text(2),
            _percent(r[name].trained.exchange_seconds / r[name].trained.seconds for r in rounds),
            _percent(r[name].trained.reduce_seconds / r[name].trained.seconds for r in rounds),
        ]
        for name in (DENSE, MOE)
    ]
    header = ["system", "parameters per process", "training, tokens/s", "to dense"]
    header += ["% of time in all-to-all", "% in other collectives"]
    body = (
        f"{table(header, rows)}\n\n{_remarks(runs, rounds, ranks, versions)} Expert parallel "
        f"{ranks} against data parallel {ranks}, ZeRO 0, gloo. Waiting for the other process "
        "counts as communication; all-to-all is that of the MoE layers, the others sum gradients."
    )
    return Section("Two processes, experts distributed over them", body)


def _percent(shares: Any) -> str:
    return Spread.of([100 * share for share in shares]).text(1)


def _train_speed(done: Round) -> float:
    return done.trained.speed


def _valid_speed(done: Round) -> float:
    return math.nan if done.validated is None else done.validated.speed


def _ratios(
    rounds: Sequence[Mapping[str, Round]], name: str, speed: Callable[[Round], float]
) -> list[float]:
    return [speed(done[name]) / speed(done[DENSE]) for done in rounds]


def _remarks(runs: Runs, rounds: Sequence[Mapping[str, Round]], ranks: int, versions: str) -> str:
    blocks = [done.trained for turn in rounds for done in turn.values()]
    wall = runs.threads * sum(block.seconds for block in blocks)
    busy = sum(block.cpu_seconds for block in blocks) / wall
    model, train = runs.recipe.model, runs.recipe.train
    return (
        f"Medians (and extremes) of {len(rounds)} rounds of {runs.updates} updates after "
        f"{runs.warmup} uncounted ones: `ds-seq train`, {model['encoder_layers']} + "
        f"{model['decoder_layers']} layers, width {model['d_model']}/{model['ffn_dim']}, 8 experts "
        f"in every second layer of both stacks, no token dropped, fp32, {ranks} process(es) with "
        f"{runs.threads // ranks} thread(s) each, busy {busy:.0%} of the time, batches of at "
        f"most {train['max_tokens']:,} tokens per process. {versions}."
    )


def _measure(runs: Runs, ranks: int) -> tuple[list[dict[str, Round]], dict[str, int], str]:
    """Let both systems take turns; return their results per round, sizes and versions."""
    validate = ranks == 1
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(_worker(runs, name, moe, ranks))
            for name, moe in ((DENSE, None), (MOE, EXPERTS))
        ]
        for worker in workers:
            worker.run(runs.warmup)
            if validate:
                worker.validate()
        rounds: list[dict[str, Round]] = []
        begin = time.monotonic()
        for number in range(runs.rounds):
            if number >= 2 and time.monotonic() - begin > runs.seconds:
                break
            order = workers if number % 2 == 0 else workers[::-1]
            done = {
                worker.name: Round(
                    worker.run(runs.updates), worker.validate() if validate else None
                )
                for worker in order
            }
            tokens = {turn.trained.target_tokens for turn in done.values()}
            assert len(tokens) == 1, f"the systems did not train on the same batches: {done}"
            speeds = ", ".join(f"{name} {done[name].trained.speed:,.0f}" for name in (DENSE, MOE))
            print(f"round {number + 1}: target tokens/s: {speeds}", file=sys.stderr, flush=True)
            rounds.append(done)
        parameters = {worker.name: worker.num_parameters for worker in workers}
        return rounds, parameters, workers[0].versions


def _worker(runs: Runs, name: str, moe: Mapping[str, Any] | None, ranks: int) -> Worker:
    key = f"{'dense' if moe is None else 'moe'}_{ranks}"
    experiment = runs.recipe.experiment(runs.folder / key, moe)
    if ranks == 1:
        experiment["train"]["validate_every"] = experiment["train"]["save_every"]  # on command only
    elif moe is not None:
        experiment["train"]["expert_parallel"] = ranks
    path = runs.folder / f"{key}.yaml"
    write_experiment(experiment, path)
    command = [sys.executable, str(HERE / "ds_seq_side.py"), str(path)]
    threads = str(max(runs.threads // ranks, 1))
    environments = [
        {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **variables}
        for variables in _ranks(ranks)
    ]
    log = runs.folder / f"{key}.log"
    return Worker(name, command, log, environments[0], environments[1:])


def _ranks(number: int) -> list[dict[str, str]]:
    """Return the environment variables that a launcher would set for this many processes."""
    if number == 1:
        return [{}]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    size = str(number)
    return [
        {
            **shared,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
        }
        for rank in range(number)
    ]
