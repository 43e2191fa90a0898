#!/usr/bin/env python3
"""Training speed of ds_seq, dense and with experts, and of other toolkits on the same batches.

Processes train the same architecture on the same batches and take turns: some updates of one, the
same updates of the next, and so on for several rounds, so that other load on the machine affects
all equally. Ratios are taken within a round; with `--cpu-time`, of processor time. eole is pre-norm
and has two more norms, as it has no other decoder.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import Goal, Spread, add_common_arguments, finish, table
from experiments import CACHE, fetch_text, write_experiment
from fairseq_venv import make_fairseq_venv
from generation_peers import PEERS, venv_name
from peer_venvs import make_venv
from throughput_setup import EXPERTS, recipe, write_fairseq_setup
from worker import Block, Worker

HERE = Path(__file__).resolve().parent
DENSE, MOE, FAIRSEQ = "ds_seq dense", "ds_seq MoE x8 top-1", "fairseq"
DENSE_GOAL, MOE_GOAL = 1.3, 0.8
OTHERS = [name for name in PEERS if name != FAIRSEQ]


@dataclass(frozen=True)
class Plan:
    """Extent of the measurement.

    Attributes:
        rounds: number of turns of each system.
        updates: updates of each system per round.
        warmup: updates of each system before the first round, not counted.
        seconds: time after which no round begins, provided there have been two.
    """

    rounds: int
    updates: int
    warmup: int
    seconds: float = math.inf

    @property
    def total_updates(self) -> int:
        """Total updates of each system."""
        return self.warmup + self.rounds * self.updates


QUICK = Plan(rounds=5, updates=3, warmup=2, seconds=90)


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    arguments = _parse(argv)
    plan = QUICK if arguments.quick else Plan(arguments.rounds, arguments.updates, warmup=4)
    with tempfile.TemporaryDirectory(prefix="ds_seq_throughput_") as folder:
        commands = _commands(arguments, plan, Path(folder))
        threads = str(arguments.threads)
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # fairseq 0.12 predates this check
        }
        with contextlib.ExitStack() as stack:
            workers = []
            for number, (name, command) in enumerate(commands.items()):
                log = Path(folder) / f"{number}.log"
                workers.append(stack.enter_context(Worker(name, command, log, environment)))
            rounds = _measure(workers, plan)
    return _report(workers, rounds, plan, arguments)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--threads", type=int, default=2, help="threads of each system")
    parser.add_argument(
        "--max-tokens", type=int, default=4096, help="tokens per batch, with padding"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--updates", type=int, default=4, help="updates of each system per round")
    parser.add_argument(
        "--peers", nargs="*", choices=OTHERS, default=OTHERS, help="toolkits besides fairseq"
    )
    parser.add_argument("--cpu-time", action="store_true", help="ratios of processor time")
    parser.add_argument(
        "--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="for text, vocabulary, fairseq")
    return parser.parse_args(argv)


def _commands(arguments: argparse.Namespace, plan: Plan, folder: Path) -> dict[str, list[str]]:
    """Prepare all inputs of the systems; return how to start them."""
    python = make_fairseq_venv(arguments.cache / "fairseq-venv")
    shared = recipe(fetch_text(arguments.cache, arguments.tsv), arguments.max_tokens)
    configs, commands = {}, {}
    for name, key, moe in ((DENSE, "dense", None), (MOE, "moe", EXPERTS)):
        path = folder / f"{key}.yaml"
        configs[name] = write_experiment(shared.experiment(folder / key, moe), path)
        commands[name] = [sys.executable, str(HERE / "ds_seq_side.py"), str(path)]
    setup = write_fairseq_setup(
        configs[DENSE], folder / "fairseq.json", plan.total_updates, arguments.threads
    )
    for name in arguments.peers:
        peer = make_venv(PEERS[name], arguments.cache / venv_name(name))
        commands[name] = [str(peer), str(HERE / "peer_training.py"), name, str(setup)]
    return {FAIRSEQ: [str(python), str(HERE / "fairseq_side.py"), str(setup)], **commands}


def _measure(workers: Sequence[Worker], plan: Plan) -> list[dict[str, Block]]:
    """Let all systems take turns; return the results of each in each round."""
    begin = time.monotonic()
    for worker in workers:
        worker.run(plan.warmup)
    rounds: list[dict[str, Block]] = []
    for number in range(plan.rounds):
        if number >= 2 and time.monotonic() - begin > plan.seconds:
            break
        blocks = {worker.name: worker.run(plan.updates) for worker in workers}
        tokens = {block.target_tokens for block in blocks.values()}
        assert len(tokens) == 1, f"the systems did not train on the same batches: {blocks}"
        speeds = ", ".join(f"{name} {block.speed:,.0f}" for name, block in blocks.items())
        print(f"round {number + 1}: target tokens/s: {speeds}", file=sys.stderr, flush=True)
        rounds.append(blocks)
    return rounds


def _report(
    workers: Sequence[Worker],
    rounds: Sequence[dict[str, Block]],
    plan: Plan,
    arguments: argparse.Namespace,
) -> int:
    ratio = partial(_ratio, rounds, cpu_time=arguments.cpu_time)
    parameters = {worker.name: worker.num_parameters for worker in workers}
    assert parameters[DENSE] == parameters[FAIRSEQ], f"the models differ: parameters {parameters}"
    rows = [
        [
            worker.name,
            f"{worker.num_parameters:,}",
            Spread.of([blocks[worker.name].speed for blocks in rounds]).text(),
            ratio(worker.name, FAIRSEQ).text(2),
            ratio(worker.name, DENSE).text(2),
            Spread.of([blocks[worker.name].cpu_speed for blocks in rounds]).text(),
            "" if math.isnan(loss := rounds[-1][worker.name].loss) else f"{loss:.2f}",
        ]
        for worker in workers
    ]
    header = ["system", "parameters", "target tokens/s", "to fairseq", "to dense"]
    header += ["tokens per CPU second", "last loss"]
    text = "fetched text" if arguments.tsv is None else "text of --tsv"
    everything = [block for blocks in rounds for block in blocks.values()]
    share = sum(block.cpu_seconds for block in everything) / (
        arguments.threads * sum(block.seconds for block in everything)
    )
    versions = "; ".join(f"{worker.name}: {worker.versions}" for worker in workers)
    body = (
        f"{table(header, rows)}\n\n"
        f"Medians (and extremes) of {len(rounds)} rounds of {plan.updates} updates after "
        f"{plan.warmup} uncounted ones; fp32, {arguments.threads} threads, batches of at most "
        f"{arguments.max_tokens:,} tokens, {text}; loss in nats per token. "
        f"Threads ran {share:.0%} of the time (less: a busy machine, noisy results).\n{versions}."
    )
    goals = [
        *(
            Goal(f"{DENSE} to {peer}", ratio(DENSE, peer).median, DENSE_GOAL, "x")
            for peer in (FAIRSEQ, *arguments.peers)
        ),
        Goal(f"{MOE} to dense", ratio(MOE, DENSE).median, MOE_GOAL, "x"),
    ]
    return finish("Training throughput", body, goals, arguments.record)


def _ratio(rounds: Sequence[dict[str, Block]], system: str, to: str, cpu_time: bool) -> Spread:
    if cpu_time:
        return Spread.of([blocks[system].cpu_speed / blocks[to].cpu_speed for blocks in rounds])
    return Spread.of([blocks[system].speed / blocks[to].speed for blocks in rounds])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
