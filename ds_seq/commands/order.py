"""`ds-seq order`: show which pairs each update holds, and that no number of ranks changes it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.commands.arguments.order import WORLDS, build_parser
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TRAINING
from ds_seq.data.mix_state import mix_position, mix_state
from ds_seq.data.mixing import Position
from ds_seq.data.source import Dataset, InParts
from ds_seq.data.stream import Legs
from ds_seq.errors import UserError
from ds_seq.tasks import build_task
from ds_seq.tasks.mix import build_mix
from ds_seq.training.inputs import train_sampler

_MOST_STOPS = 6


class Update(NamedTuple):
    """An update over all ranks.

    Attributes:
        before: the position before it.
        after: the position after it.
        pairs: (B,) numbers of its pairs, ascending.
    """

    before: Position
    after: Position
    pairs: NDArray[np.int64]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq order`; return the exit code."""
    arguments = build_parser().parse_intermixed_args(argv)
    worlds = _worlds(arguments.worlds)
    config = load_experiment(arguments.experiment, arguments.overrides, TRAINING)
    config = _with_group(config, worlds)
    dataset = build_task(config.task, config.data).dataset("train")
    legs = {world: _legs(config, dataset, world) for world in worlds}
    updates = list(_updates(legs[worlds[0]], legs[worlds[0]][0].start, arguments.updates))
    for number, update in enumerate(updates, 1):
        print(_line(number, update, legs[worlds[0]][0], dataset))
        if arguments.ids:
            print("    " + " ".join(map(str, np.sort(update.pairs % len(dataset)).tolist())))
    stops = _check(updates, legs)
    print(
        f"{len(updates)} updates of {config.train.batches_per_update} batches: the same pairs on "
        f"{', '.join(map(str, worlds))} rank(s), and after stops behind updates "
        f"{', '.join(map(str, stops)) or '-'} on one of them after the other"
    )
    return 0


def _worlds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--worlds {text}: should be numbers of ranks, such as {WORLDS}")
    return [int(part) for part in dict.fromkeys(parts)]


def _with_group(config: ExperimentConfig, worlds: Sequence[int]) -> ExperimentConfig:
    """Return the experiment with a number of batches per update for all numbers of ranks."""
    group = config.train.fixed_group
    if group is None:
        group = max(worlds) * config.train.accumulate
        print(
            f"train.batches_per_update is null: updates grow with the number of ranks; shown with "
            f"{group}, that of {max(worlds)} ranks"
        )
    fixed = {"batches_per_update": group, "global_batch_tokens": None}
    train = config.train.model_copy(update=fixed)
    return config.model_copy(update={"train": train})


def _legs(config: ExperimentConfig, dataset: Dataset, world: int) -> list[Legs]:
    """Return the legs of each rank."""
    first = train_sampler(config, dataset, 0, world)
    samplers = [first.of_rank(rank) for rank in range(world)]
    seed = config.train.seed
    return [Legs(each, build_mix(config.data, seed, dataset, each)) for each in samplers]


def _updates(legs: Sequence[Legs], position: Position, count: int) -> Iterator[Update]:
    """Yield updates, from a position on, put together from the batches of all ranks."""
    while count > 0:
        of_ranks = [each.batches(position) for each in legs]
        size = legs[0].sampler(position).accumulate
        before = position
        for number in range(1, 1 + min(count, legs[0].num_updates(position))):
            batches = [next(batches) for batches in of_ranks for _ in range(size)]
            after = legs[0].along(position, number)
            yield Update(before, after, np.sort(np.concatenate(batches)))
            before, count = after, count - 1
        position = legs[0].after(position)


def _line(number: int, update: Update, legs: Legs, dataset: Dataset) -> str:
    digest = hashlib.sha256(update.pairs.astype("<i8").tobytes()).hexdigest()[:12]
    words = [f"update {number:>5}", f"epoch {update.before.epoch}"]
    if legs.mix is not None and len(legs.mix.stages) > 1:
        words.append(f"stage {legs.mix.stage(update.before.plan).name}")
    words += [f"{len(update.pairs):>6,} pairs", digest]
    if isinstance(dataset, InParts) and len(dataset.parts) > 1:
        counts = Counter(dataset.part_of(update.pairs).tolist())
        words.append(" ".join(f"{p.name} {counts[n]}" for n, p in enumerate(dataset.parts)))
    return " | ".join(words)


def _check(updates: Sequence[Update], legs: dict[int, list[Legs]]) -> list[int]:
    """Compare all numbers of ranks, without a stop and with stops; return behind which updates.

    Raises:
        UserError: an update has other pairs; names the first.
    """
    worlds = list(legs)
    for world in worlds[1:]:
        _compare(updates, _updates(legs[world], legs[world][0].start, len(updates)), 0, world)
    for stop in _stops(updates):
        world = worlds[stop % len(worlds)]
        position = _resumed(legs[world][0], updates[stop - 1].after)
        few = updates[stop : stop + 1]
        _compare(few, _updates(legs[world], position, 1), stop, world)
    return _stops(updates)


def _stops(updates: Sequence[Update]) -> list[int]:
    """Return numbers of updates behind which to stop: at the ends of epochs, and some others."""
    ends = [n for n, update in enumerate(updates, 1) if update.after.done == 0]
    around = [n + step for n in ends[:_MOST_STOPS] for step in (0, 1)]
    spread = np.linspace(1, len(updates), _MOST_STOPS).astype(int).tolist()
    return sorted({n for n in (*around, *spread) if 0 < n < len(updates)})


def _resumed(legs: Legs, position: Position) -> Position:
    """Return a position as a checkpoint restores it."""
    if legs.mix is None:
        return Position(position.epoch, position.done)
    restored, _ = mix_position(legs.mix, mix_state(legs.mix, position), position.epoch)
    return restored._replace(done=position.done)


def _compare(expected: Sequence[Update], found: Iterator[Update], first: int, world: int) -> None:
    for number, (one, other) in enumerate(zip(expected, found, strict=True), first + 1):
        if not np.array_equal(one.pairs, other.pairs):
            raise UserError(
                f"update {number} has other pairs on {world} rank(s)"
                + (" after a stop before it" if first else "")
            )
