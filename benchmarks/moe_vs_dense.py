#!/usr/bin/env python3
"""Whether experts pay off: quality of dense and MoE models over updates and training time.

Both systems are `ds-seq train` on the same batches, with the same active parameters. They take
turns of a few updates, and only one of them runs at a time, so that other load on the machine
affects both equally. Training time excludes validation.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import add_common_arguments, command_line, machine
from curve_plot import load_matplotlib, plot_curves
from curves import Point, Record, curves_of
from experiments import CACHE, NEVER, Recipe, fetch_text, model_section, write_experiment
from pays_report import DENSE, MOE, report
from worker import Worker

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.errors import UserError, run_command
from ds_seq.text.sentencepiece import SentencePieceTokenizer

HERE = Path(__file__).resolve().parent
PLOTS = HERE / "plots"
NAME = "moe_vs_dense"
QUICK = {
    "minutes": 2.0,
    "layers": 2,
    "d_model": 128,
    "ffn_dim": 512,
    "validate_every": 40,
    "valid_sentences": 100,
    "warmup": 100,
    "max_tokens": 2000,
}


@dataclass(frozen=True)
class Plan:
    """Length of the training, and turns of the systems.

    Attributes:
        slice: updates per turn.
        validate_every: updates between two validations.
        updates: maximum number of updates of each system.
        seconds: time for both together, including start-up and validation.
    """

    slice: int
    validate_every: int
    updates: int
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Train, or read a record; print, plot, record; return the exit status."""
    arguments = _parse(argv)
    if arguments.plot:
        load_matplotlib()  # fail now rather than an hour later
    record = Record(arguments.report or arguments.out / f"{NAME}.jsonl")
    if arguments.report is None:
        _train(arguments, record)
    try:
        settings, points = record.read()
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    picture = None
    if arguments.plot:
        picture = (PLOTS if arguments.record else arguments.out) / f"{NAME}.png"
        curves = curves_of(points, settings["vocab_size"])
        plot_curves(curves, DENSE, settings["title"], picture)
        print(f"{picture}", file=sys.stderr)
    if arguments.record:
        copy = Record(PLOTS / f"{NAME}.jsonl")
        copy.begin(settings)
        for point in points:
            copy.add(point)
    return report(settings, points, picture, arguments.record)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_common_arguments(parser)
    add = parser.add_argument_group("time").add_argument
    add("--minutes", type=float, default=55.0, help="time for both systems and all seeds together")
    add("--updates", type=int, help="maximum number of updates of each system")
    add("--slice", type=int, default=10, metavar="N", help="updates per turn")
    add("--validate-every", type=int, default=100, metavar="N", help="updates")
    add("--valid-sentences", type=int, default=500, metavar="N", help="translated for BLEU")
    add("--beam", type=int, default=4, help="beam size of these translations")
    add("--seeds", type=int, nargs="+", default=[1], help="seeds, with a pair of runs each")
    add("--threads", type=int, default=2, help="threads of each system")
    add = parser.add_argument_group("model and training, alike for both").add_argument
    add("--layers", type=int, default=4, help="layers of each stack")
    add("--d-model", type=int, default=256, help="width")
    add("--ffn-dim", type=int, default=1024, help="inner width, dense and per expert")
    add("--vocab-size", type=int, default=8000, help="subwords")
    add("--dropout", type=float, default=0.2, help="dropout on embeddings and sublayers")
    add("--max-tokens", type=int, default=4096, help="tokens per batch, including padding")
    add("--accumulate", type=int, default=1, metavar="N", help="batches per update")
    add("--lr", type=float, default=2e-3, help="peak learning rate")
    add("--warmup", type=int, default=400, metavar="N", help="updates until the peak learning rate")
    add("--scheduler", choices=("inverse_sqrt", "cosine", "linear"), default="inverse_sqrt",
        help="cosine and linear end at --updates")  # fmt: skip
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any setting of an experiment")
    add = parser.add_argument_group("experts").add_argument
    add("--experts", type=int, default=8, help="experts per layer, top-1")
    add("--every", type=int, default=2, metavar="N", help="every n-th layer has experts")
    add("--capacity-factor", type=float, help="in training; none: no token is dropped")
    add("--load-balance", type=float, default=0.01, help="weight of that loss")
    add("--router-z", type=float, default=0.001, help="weight of that loss")
    add("--set-moe", nargs="+", default=[], metavar="KEY=VALUE",
        help="any setting of the MoE experiment, such as model.moe.noise=jitter")  # fmt: skip
    add = parser.add_argument_group("files").add_argument
    add("--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text")
    add("--cache", type=Path, default=CACHE, help="folder for text and vocabulary")
    add("--out", type=Path, default=Path("runs") / NAME, help="for the record, plot and runs")
    add("--save", action="store_true", help="keep the trained models below --out")
    add("--no-plot", dest="plot", action="store_false", help="draw no plot; needs no matplotlib")
    add("--report", type=Path, metavar="JSONL", help="train nothing; report on this record")
    if "--quick" in argv:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args(argv)
    if arguments.validate_every % arguments.slice:
        parser.error("--validate-every must be a multiple of --slice")
    if arguments.scheduler != "inverse_sqrt" and arguments.updates is None:
        parser.error(f"--scheduler {arguments.scheduler} needs --updates, where it ends")
    return arguments


def _recipe(arguments: argparse.Namespace, seed: int) -> Recipe:
    text = fetch_text(arguments.cache, arguments.tsv)
    scheduler: dict[str, Any] = {"name": arguments.scheduler, "warmup_updates": arguments.warmup}
    if arguments.scheduler != "inverse_sqrt":
        scheduler["total_updates"] = arguments.updates
    return Recipe(
        text=text,
        shards=text / f"shards-{arguments.vocab_size}",
        splits=("train", "valid"),
        vocab_size=arguments.vocab_size,
        model=model_section(
            arguments.layers, arguments.d_model, arguments.ffn_dim, arguments.dropout
        ),
        train={
            "max_tokens": arguments.max_tokens,
            "accumulate": arguments.accumulate,
            "clip_norm": 1.0,
            "seed": seed,
            # the parent decides on validation and the end, so the trainer itself must do neither
            "max_updates": NEVER,
            "validate_every": NEVER,
            "valid_bleu": True,
            "valid_max_sentences": arguments.valid_sentences,
            "keep_best": 1,
        },
        optimizer={"name": "adam", "lr": arguments.lr, "betas": [0.9, 0.98]},
        scheduler=scheduler,
        generation={"beam": arguments.beam},
        router_losses={"load_balance": arguments.load_balance, "router_z": arguments.router_z},
    )


def _train(arguments: argparse.Namespace, record: Record) -> None:
    """Train a pair of runs per seed, and record their validations."""
    seconds = 60 * arguments.minutes / len(arguments.seeds)
    for number, seed in enumerate(arguments.seeds):
        begin = time.monotonic()
        folder = arguments.out / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        configs = _experiments(arguments, seed, folder)
        if number == 0:
            record.begin(_settings(arguments, configs))
        plan = Plan(arguments.slice, arguments.validate_every, arguments.updates or NEVER, seconds)
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(_worker(name, folder, key, arguments.threads))
                for name, key in _KEYS.items()
            ]
            _take_turns(workers, plan, begin, lambda point: _note(point, record), seed)
            if arguments.save:
                for worker in workers:
                    worker.save()


_KEYS = {DENSE: "dense", MOE: "moe"}


def _experiments(
    arguments: argparse.Namespace, seed: int, folder: Path
) -> dict[str, ExperimentConfig]:
    """Write both experiments and prepare the text."""
    recipe = _recipe(arguments, seed)
    experts = {
        "num_experts": arguments.experts,
        "top_k": 1,
        "every": arguments.every,
        "capacity_factor": arguments.capacity_factor,
    }
    systems: dict[str, tuple[Mapping[str, Any] | None, list[str]]] = {
        DENSE: (None, arguments.set),
        MOE: (experts, [*arguments.set, *arguments.set_moe]),
    }
    return {
        name: write_experiment(
            recipe.experiment(folder / _KEYS[name], moe),
            folder / f"{_KEYS[name]}.yaml",
            overrides,
        )
        for name, (moe, overrides) in systems.items()
    }


def _settings(
    arguments: argparse.Namespace, configs: Mapping[str, ExperimentConfig]
) -> dict[str, Any]:
    """Return the properties of the runs that the report needs."""
    vocab_size = len(SentencePieceTokenizer.load(f"{configs[DENSE].data.dir}/vocab.model"))
    sizes = {name: config.model.num_params(vocab_size) for name, config in configs.items()}
    model = configs[MOE].model
    title = (
        f"{model.encoder_layers} + {model.decoder_layers} layers, width "
        f"{model.d_model}/{model.ffn_dim}, {sizes[DENSE].active / 1e6:.1f}M active parameters"
    )
    return {
        "title": title,
        "run": f"{command_line()} on {machine()}",
        "vocab_size": vocab_size,
        "text": "fetched text" if arguments.tsv is None else "text of --tsv",
        "parameters": {name: size.total for name, size in sizes.items()},
        "active": {name: size.active for name, size in sizes.items()},
        "threads": arguments.threads,
        "slice": arguments.slice,
        "valid_sentences": arguments.valid_sentences,
        "experiments": {
            name: config.model_dump(mode="json", include={"model", "criterion", "optimizer",
                                                          "scheduler", "generation"})
            for name, config in configs.items()
        },
    }  # fmt: skip


def _worker(name: str, folder: Path, key: str, threads: int) -> Worker:
    command = [sys.executable, str(HERE / "ds_seq_side.py"), str(folder / f"{key}.yaml")]
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return Worker(name, command, folder / f"{key}.log", environment)


def _take_turns(
    workers: Sequence[Worker],
    plan: Plan,
    begin: float,
    note: Callable[[Point], None],
    seed: int,
) -> None:
    """Train in turns until the updates or the time are used up; validate on the way and at the
    end."""
    seconds = {worker.name: 0.0 for worker in workers}
    update = tokens = turn = 0
    validation_seconds = 0.0
    while True:
        order = workers if turn % 2 == 0 else workers[::-1]
        turn += 1
        updates = min(plan.slice, plan.updates - update)
        blocks = {worker.name: worker.run(updates) for worker in order}
        seen = {block.target_tokens for block in blocks.values()}
        assert len(seen) == 1, f"the systems did not train on the same batches: {blocks}"
        update, tokens = update + updates, tokens + seen.pop()
        for name, block in blocks.items():
            seconds[name] += block.seconds
        # the last validation must fit into the remaining time
        over = time.monotonic() - begin + validation_seconds > plan.seconds
        last = over or update >= plan.updates
        if last or update % plan.validate_every == 0:
            before = time.monotonic()
            for worker in order:
                found = worker.validate()
                assert found.bleu is not None
                note(
                    Point(
                        worker.name,
                        seed,
                        update,
                        seconds[worker.name],
                        tokens,
                        found.bleu,
                        found.loss,
                        found.seconds,
                    )
                )
            validation_seconds = time.monotonic() - before
        if last:
            return


def _note(point: Point, record: Record) -> None:
    record.add(point)
    print(
        f"seed {point.seed}, update {point.update}, {point.system}: BLEU {point.bleu:.2f}, loss "
        f"{point.loss:.3f}, {point.seconds / 60:.1f} min of training",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
