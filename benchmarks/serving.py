#!/usr/bin/env python3
"""`ds-seq serve` under load: speed against one by one and CTranslate2, memory, and its end.

    python benchmarks/serving.py [--run RUN --text FILE] [--record]

Without RUN, the model is an untrained one with the vocabulary of a run of the tests. It seldom ends
a translation, so all have the largest length, which is set to that of their sources.

`speed`: clients that send one sentence after another, each over its own connection. The servers
take turns in each round; ratios are taken within a round. `one by one` is the same server with
batches of a single sentence. CTranslate2 has the same weights (`serving_side.py`).
`memory`: resident memory of one server over many requests of a few words, of all kinds, mistakes
among them.
`signal`: SIGTERM under load; a request counts as lost if its answer is not whole.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import Goal, Section, Spread, add_common_arguments, finish, table
from serving_load import Load, Server, load, started

from ds_seq.cli import main as ds_seq
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import run_command
from ds_seq.models import build_model
from ds_seq.runs.export import write_export
from ds_seq.runs.open import load_run, open_run
from ds_seq.text.lines import read_lines

HERE = Path(__file__).resolve().parent
OURS, SINGLE, CTRANSLATE2 = "ds-seq serve", "one by one", "CTranslate2"
TOY = HERE.parent / "tests" / "compat" / "v0_1"
WIDTH, LAYERS = 128, 2
CLIENTS = (1, 8, 32)
BEAM = 4
OPTIONS = ("--max-len-a", 1, "--max-len-b", 0, "--time-limit", 600)
WARM_UP = 16
MANY_CLIENTS = 64  # of the section memory: large batches take less processor time a request


def main(argv: Sequence[str]) -> int:
    """Measure, print, record; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument("--run", type=Path, help="a trained dense run")
    parser.add_argument("--text", type=Path, default=TOY / "text" / "test.en")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--requests", type=int, default=320, help="requests of a round, by system")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=10_000, help="requests of the section memory")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.requests, arguments.rounds, arguments.many = 64, 2, 1000
    sections = []
    with tempfile.TemporaryDirectory(prefix="ds_seq_serving_") as folder:
        arguments.run = arguments.run or untrained(Path(folder) / "untrained")
        for name in arguments.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            sections.append(SECTIONS[name](arguments))
    body = "\n\n".join(f"### {section.title}\n\n{section.body}" for section in sections)
    goals = [goal for section in sections for goal in section.goals]
    return finish("A server under load", body, goals, arguments.record)


def untrained(out: Path) -> Path:
    """Write an export of an untrained model."""
    run = load_run(TOY / "runs" / "dense", "best")
    sizes = {"d_model": WIDTH, "ffn_dim": 4 * WIDTH, "num_heads": WIDTH // 64}
    layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "max_positions": 128}
    model = {"name": "transformer", "norm_position": "pre", "share_embeddings": "all"}
    experiment = run.require_experiment().model_dump()
    config = ExperimentConfig.model_validate(experiment | {"model": model | sizes | layers})
    fresh = build_model(config.model, run.tokenizers.sizes, 1, 0, seed=1)
    write_export(fresh.requires_grad_(False).eval(), config, run.tokenizers, out)
    return out


def serve(run: Path, *options: object) -> list[object]:
    """Return the command of a server."""
    return ["-m", "ds_seq", "serve", run, "--port", 0, "--beam", BEAM, *OPTIONS, *options]


def bodies(arguments: argparse.Namespace, count: int) -> list[dict[str, Any]]:
    """Return requests of one sentence each."""
    lines = [line for line in read_lines(str(arguments.text)) if line.strip()]
    return [{"text": line} for line in itertools.islice(itertools.cycle(lines), count)]


def speed(arguments: argparse.Namespace) -> Section:
    """Requests per second and latencies of the servers, for several numbers of clients."""
    asked = bodies(arguments, arguments.requests)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        run = arguments.run
        servers[OURS] = stack.enter_context(started(*serve(run)))
        servers[SINGLE] = stack.enter_context(started(*serve(run, "--max-sentences", 1)))
        servers[CTRANSLATE2] = stack.enter_context(_ctranslate2(arguments, stack))
        rows, goals = [], []
        for server in servers.values():
            load(server, asked[:WARM_UP], 4)
        for clients in CLIENTS:
            count = max(len(asked) * clients // max(CLIENTS), 2 * WARM_UP)
            rounds = [
                {name: load(server, asked[:count], clients) for name, server in servers.items()}
                for _ in range(arguments.rounds)
            ]
            for name in servers:
                rows.append(_row(name, clients, rounds, name))
            ratio = Spread.of([each[SINGLE].seconds / each[OURS].seconds for each in rounds])
            theirs = Spread.of([each[CTRANSLATE2].seconds / each[OURS].seconds for each in rounds])
            if clients > 1:
                goals.append(Goal(f"{clients} clients, to one by one", ratio.median, 2, "x"))
                goals.append(Goal(f"{clients} clients, to CTranslate2", theirs.median, 0.5, "x"))
    header = ["server", "clients", "requests/s", "to one by one", "processor ms", "p50, ms"]
    return Section("speed", table([*header, "p95, ms", "p99, ms"], rows), goals)


def _row(name: str, clients: int, rounds: list[dict[str, Load]], system: str) -> list[str]:
    own = [each[system] for each in rounds]
    assert all(set(each.statuses or ()) == {200} and not each.lost for each in own)
    counts = [len(each.latencies or ()) for each in own]
    rates = [count / each.seconds for count, each in zip(counts, own, strict=True)]
    ratios = [each[SINGLE].seconds / each[system].seconds for each in rounds]
    cpu = [1000 * each.cpu_seconds / count for each, count in zip(own, counts, strict=True)]
    shown = [Spread.of(rates).text(1), Spread.of(ratios).text(2), Spread.of(cpu).text(1)]
    percentiles = [f"{Spread.of([each.percentile(p) for each in own]).median:,.0f}"
                   for p in (50, 95, 99)]  # fmt: skip
    return [name, str(clients), *shown, *percentiles]


def _ctranslate2(arguments: argparse.Namespace, stack: ExitStack) -> Any:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "export"

    assert (
        ds_seq(["export", str(arguments.run), "--out", str(folder), "--format", "ctranslate2"]) == 0
    )
    vocabulary = folder.parent / "vocab.model"
    vocabulary.write_bytes(open_run(arguments.run, "best").tokenizers.source.to_bytes())
    return started(HERE / "serving_side.py", folder, vocabulary, BEAM)


def memory(arguments: argparse.Namespace) -> Section:
    """Resident memory of one server over many requests."""
    kinds: list[dict[str, Any]] = [
        *[{}] * 8,
        {"n_best": 3, "search": {"beam": 4}, "tokens": True, "align": True},
        {"search": {"sampling": True}},
        {"search": {"beam": 2, "length_penalty": 0.5}},
        {"constraints": [[]], "prefix": ""},
        {"model": "missing"},
        {"search": {"beem": 1}},
    ]
    asked = []
    for body, kind in zip(bodies(arguments, arguments.many), itertools.cycle(kinds), strict=False):
        few_words = " ".join(body["text"].split()[:2])
        asked.append({"text": few_words, **kind})
    rows, sizes, lost = [], [], 0
    with started(*serve(arguments.run, "--beam", 1)) as server:
        step = max(arguments.many // 20, 1)
        for begin in range(0, arguments.many, step):
            part = asked[begin : begin + step]
            found = load(server, part, MANY_CLIENTS)
            answers = found.statuses or {}
            lost += len(part) - sum(answers.get(status, 0) for status in (200, 400, 404))
            sizes.append(server.megabytes)
            milliseconds = 1000 * found.cpu_seconds / len(part)
            counts = [f"{answers.get(status, 0):,}" for status in (200, 400, 404)]
            rows.append(
                [f"{begin + len(part):,}", *counts, f"{milliseconds:.1f}", f"{sizes[-1]:,.1f}"]
            )
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    goals = [
        Goal(
            "memory at the end to that after half",
            sizes[-1] / sizes[len(sizes) // 2 - 1],
            1.02,
            "x",
            False,
        ),
        Goal("requests without an answer", lost, 0, "", False),
    ]
    header = ["requests", "200", "400", "404", "processor ms", "resident MB"]
    return Section("memory", table(header, rows), goals)


def at_signal(arguments: argparse.Namespace) -> Section:
    """Requests that are lost when the server is ended under load."""
    trials = 2 if arguments.quick else 10
    rows, lost = [], 0
    for trial in range(trials):
        with started(*serve(arguments.run)) as server:
            asked = bodies(arguments, 2000)
            load(server, asked[:WARM_UP], 4)

            def end(running: Server = server, seconds: float = 0.2 + 0.15 * trial) -> None:
                time.sleep(seconds)
                running.process.send_signal(signal.SIGTERM)

            threading.Thread(target=end).start()
            found = load(server, asked, 16)
            code = server.process.wait(60)
            lost += found.lost + (code != 0)
            by_status = [str((found.statuses or {}).get(status, 0)) for status in (200, 503, 0)]
            rows.append([str(trial + 1), *by_status, str(found.lost), str(code)])
    header = ["trial", "answered", "refused with 503", "not connected", "lost", "exit code"]
    return Section("signal", table(header, rows), [Goal("requests lost", lost, 0, "", False)])


SECTIONS = {"speed": speed, "memory": memory, "signal": at_signal}

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
