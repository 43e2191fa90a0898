#!/usr/bin/env python3
"""Does it pay? Dense against experts: quality over updates and over time of training.

Both systems are `ds-seq train` on the same batches, with the same active parameters. They take
turns, some updates each, and only one of them runs at a time, so that whatever else the machine
does hits both alike. Time of training leaves validation out.
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
    """How long the systems train, and how they take turns.

    Attributes:
        slice: updates of a turn.
        validate_every: updates between two validations.
        updates: of each system at most.
        seconds: for both together, start-up and validation included.
    """

    slice: int
    validate_every: int
    updates: int
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Trains, or reads what was trained; prints, draws, records; returns the exit status."""
    arguments = _parse(argv)
    if arguments.plot:
        load_matplotlib()  # an hour later would be late
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
    add("--minutes", type=float, default=55.0, help="for both systems and all seeds together")
    add("--updates", type=int, help="of each system at most")
    add("--slice", type=int, default=10, metavar="N", help="updates of a turn")
    add("--validate-every", type=int, default=100, metavar="N", help="updates")
    add("--valid-sentences", type=int, default=500, metavar="N", help="translated for BLEU")
    add("--beam", type=int, default=4, help="of those translations")
    add("--seeds", type=int, nargs="+", default=[1], help="a pair of runs for each")
    add("--threads", type=int, default=2, help="of each system")
    add = parser.add_argument_group("model and training, alike for both").add_argument
    add("--layers", type=int, default=4, help="of both stacks")
    add("--d-model", type=int, default=256, help="width")
    add("--ffn-dim", type=int, default=1024, help="inner width, dense and of each expert")
    add("--vocab-size", type=int, default=8000, help="subwords")
    add("--dropout", type=float, default=0.2, help="on embeddings and sub-layers")
    add("--max-tokens", type=int, default=4096, help="of a batch, with padding")
    add("--accumulate", type=int, default=1, metavar="N", help="batches of an update")
    add("--lr", type=float, default=2e-3, help="highest learning rate")
    add("--warmup", type=int, default=400, metavar="N", help="updates to the highest rate")
    add("--scheduler", choices=("inverse_sqrt", "cosine", "linear"), default="inverse_sqrt",
        help="cosine and linear end at --updates")  # fmt: skip
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any setting of an experiment")
    add = parser.add_argument_group("experts").add_argument
    add("--experts", type=int, default=8, help="of a layer, top-1")
    add("--every", type=int, default=2, metavar="N", help="every n-th layer has experts")
    add("--capacity-factor", type=float, help="of an expert in training; none: no token is dropped")
    add("--load-balance", type=float, default=0.01, help="weight of that loss")
    add("--router-z", type=float, default=0.001, help="weight of that loss")
    add("--set-moe", nargs="+", default=[], metavar="KEY=VALUE",
        help="any setting of the MoE experiment, such as model.moe.noise=jitter")  # fmt: skip
    add = parser.add_argument_group("files").add_argument
    add("--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text")
    add("--cache", type=Path, default=CACHE, help="for text and vocabulary")
    add("--out", type=Path, default=Path("runs") / NAME, help="for the record, the plot and runs")
    add("--save", action="store_true", help="keep the trained models below --out")
    add("--no-plot", dest="plot", action="store_false", help="needs no matplotlib")
    add("--report", type=Path, metavar="JSONL", help="train nothing, report on such a record")
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
            # validation and the end come on command: the trainer itself must see neither
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
    """Trains a pair for each seed, and records their validations."""
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
    """Writes both experiments and prepares the text."""
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
    """What the report has to know of the runs."""
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
    """Trains by turns until the updates or the time are used up; validates on the way and at the
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
        assert len(seen) == 1, f"the systems did not see the same batches: {blocks}"
        update, tokens = update + updates, tokens + seen.pop()
        for name, block in blocks.items():
            seconds[name] += block.seconds
        # the last validation belongs to the time there is
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
