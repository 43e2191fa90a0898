"""`ds-seq average`: the mean of several checkpoints, as one model of the same size and speed.

The mean of the last or the best checkpoints of a training run usually translates better than each
of them (Vaswani et al., 2017, "Attention Is All You Need", section 6.1, arXiv:1706.03762). The same
may hold for runs that started from one model (Wortsman et al., 2022, "Model soups",
arXiv:2203.05482). Models with independent initializations have no common order of hidden units, so
their mean is useless.

Tensors are read by name and experts by global index, so the parallel layout and the format of a
checkpoint do not matter. Memory holds the new model and one tensor, or one expert's tensor, of the
other models at a time.

Shapes: E experts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.models import build_model
from ds_seq.runs.card import StoredRun
from ds_seq.runs.formats.ds_seq import (
    CONFIG_FILE,
    checkpoint_weights,
    find_checkpoint,
    split_kind,
)
from ds_seq.runs.open import open_run
from ds_seq.weights.fill import expert_offsets, model_tensors, read_like
from ds_seq.weights.meta import CHECKPOINTS, INDEX_FILE, META_FILE, read_index
from ds_seq.weights.source import TensorSource

NOTE_KEY = "ds_seq.averaged"  # in the header of the weights file: what was averaged, as JSON

# keys of a model section that do not affect what its trained weights compute
_TRAINING_ONLY = frozenset(
    ("preset", "dropout", "attention_dropout", "activation_dropout", "activation_checkpointing")
)


class AveragedModel(NamedTuple):
    """One of the models to average."""

    path: Path
    """Checkpoint folder, exported folder or exported file."""
    run: StoredRun
    update: int | None
    """Update of the checkpoint; None if unknown, as for an export."""
    score: float | None
    """Validation score of the checkpoint; None if there is none."""


class _Entry(NamedTuple):
    """An entry of a checkpoint in the index of its run."""

    name: str
    update: int
    score: float | None


def mean(values: Iterable[Tensor]) -> Tensor:
    """Return the mean of tensors, read one after another.

    Floating-point numbers are summed in float64. For float32 and shorter formats this is nearly
    exact: the order does not matter, and the mean of equal tensors is equal to them.

    Integers, such as the balancing bias of a router in units of its step, stay integers: the result
    is the exact mean rounded to the nearest integer, with ties to even. The error is at most half a
    step, which is less than the change of the bias in one update.

    Args:
        values: at least one tensor; all of the same shape, and either all or none of them
            floating-point.

    Returns:
        float64 or int64, of the same shape.
    """
    rest = iter(values)
    first, count = next(rest), 1
    if first.is_floating_point():
        total = first.to(torch.float64, copy=True)
        del first  # free a large tensor before the next one is read
        for value in rest:
            total += value
            count += 1
            del value
        return total.div_(count)
    origin = first.to(torch.int64)
    # sums of differences, so that large similar numbers do not overflow
    total = torch.zeros_like(origin)
    for value in rest:
        total += value.to(torch.int64) - origin
        count += 1
    below = origin + total.div(count, rounding_mode="floor")
    twice = 2 * total.remainder(count)
    return below + ((twice > count) | ((twice == count) & (below % 2 == 1)))


def average(runs: Sequence[StoredRun]) -> nn.Module:
    """Average models with the same architecture and vocabulary.

    Args:
        runs: at least one run; the first determines the config of the new model.

    Returns:
        A new model on the CPU, in float32, with all experts.

    Raises:
        UserError: the model sections or vocabularies differ, weights are rounded, or a file is
            damaged.
    """
    first = runs[0]
    for run in runs:
        run.require_full_precision()
    for other in runs[1:]:
        _check_same(first, other)
    first.check_size()
    model = build_model(first.model_config, first.tokenizers.sizes, 1, 0, seed=first.seed)
    fill_with_mean(model, [run.weights for run in runs])
    return model


@torch.no_grad()
def fill_with_mean(model: nn.Module, sources: Sequence[TensorSource]) -> None:
    """Write the mean of `sources` into `model`; all must have exactly the same tensors.

    Args:
        model: the whole model, on one rank.
        sources: at least one source of tensors.

    Raises:
        UserError: a source is damaged or holds a different model.
    """
    offsets = expert_offsets(model)
    for source in sources:
        _check_keys(model, offsets, source)
    for name, tensor in model_tensors(model):
        if name in offsets:
            for expert, row in enumerate(tensor.split(1)):  # (1, ...) of (E, ...)
                row.copy_(mean(_read(sources, name, row, expert)))
        else:
            tensor.copy_(mean(_read(sources, name, tensor, None)))
    for source in sources:
        source.verify()


def _read(
    sources: Sequence[TensorSource], name: str, like: Tensor, expert: int | None
) -> Iterator[Tensor]:
    for source in sources:
        yield read_like(source, name, like.shape, like.dtype, expert)


def _check_keys(model: nn.Module, offsets: Mapping[str, int], source: TensorSource) -> None:
    """Reject surplus experts and tensors, which reading tensor by tensor would not notice."""
    known: set[str] = set()
    for name, tensor in model_tensors(model):
        total = len(tensor) if name in offsets else None
        if total is not None and source.num_experts(name) != total:
            raise UserError(
                f"{source.path}: {name} has {source.num_experts(name)} experts, its experiment "
                f"says {total}; the weights are of another model"
            )
        known.update(source.keys_of(name, total))
    foreign = sorted(source.keys() - known)
    if foreign:
        raise UserError(
            f"{source.path}: has {foreign[0]!r}, which the model of its experiment lacks; "
            "the weights are of another model"
        )


def _check_same(first: StoredRun, other: StoredRun) -> None:
    sections = [run.model_config.model_dump(mode="json") for run in (first, other)]
    difference = next(_differences("model", *sections), None)
    if difference is not None:
        key, ours, theirs = difference
        raise UserError(
            f"{other.weights.path}: {key} is {theirs}, but {ours} in {first.weights.path}; "
            "only weights of the same model have a mean"
        )
    ours, theirs = first.tokenizers.fingerprint, other.tokenizers.fingerprint
    if ours != theirs:
        raise UserError(
            f"{other.weights.path}: has vocabulary {theirs[:12]}, but "
            f"{first.weights.path} has {ours[:12]}; only weights with the same "
            "vocabulary have a mean"
        )


def _differences(key: str, ours: Any, theirs: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted((ours.keys() | theirs.keys()) - _TRAINING_ONLY):
            yield from _differences(f"{key}.{name}", ours.get(name), theirs.get(name))
    elif ours != theirs:
        yield key, _value_text(ours), _value_text(theirs)


def _value_text(value: Any) -> str:
    """Format a value for a message; a section that only one experiment has is not shown in full."""
    return "given" if isinstance(value, dict) else json.dumps(value)


def listed_models(
    run: Path, which: str, count: int, until: int | None = None
) -> list[AveragedModel]:
    """Return checkpoints from the index of a run.

    Args:
        run: the run folder; `:raw` at its end takes the weights themselves, not their average.
        which: `last`, in the order of their updates, or `best`, the best first.
        count: number of checkpoints.
        until: last update to consider; None for all.

    Raises:
        UserError: `run` is not a run folder, or it has fewer checkpoints.
    """
    run, kind = _split_kind(run)
    entries = _read_index(run)[which]
    entries = [entry for entry in entries if until is None or entry.update <= until]
    if len(entries) < count:
        kind = "most recent" if which == "last" else "best"
        bound = "" if until is None else f" up to update {until}"
        raise UserError(
            f"{run}: has kept {len(entries)} of its {kind} checkpoints{bound}, not {count}; ask "
            "for fewer. train.keep_last and train.keep_best set how many of the most recent and "
            "of the best are kept"
        )
    chosen = entries[:count] if which == "best" else entries[-count:]
    return [_part(run / CHECKPOINTS / entry.name, kind, entry) for entry in chosen]


def named_model(path: Path) -> AveragedModel:
    """Open a checkpoint in its run folder, the best checkpoint of a run folder, or an export.

    A path that ends in `:raw` takes the weights themselves, not their average (`train.ema`).

    Raises:
        UserError: `path` is none of these, or it is damaged.
    """
    path, kind = _split_kind(path)
    if not (path / META_FILE).is_file():
        if not (path / CHECKPOINTS).is_dir():
            which = "best" if kind is None else f"best:{kind}"
            return AveragedModel(path, open_run(path, which), None, None)
        path = find_checkpoint(path, "best")
    folder = path.absolute()  # links are not resolved: RUN/checkpoints may be on another disk
    if folder.parent.name != CHECKPOINTS or not (folder.parents[1] / CONFIG_FILE).is_file():
        raise UserError(
            f"{path}: a checkpoint outside its run folder, without experiment and vocabulary; "
            f"put it into RUN/{CHECKPOINTS}"
        )
    return _part(path, kind, _find_entry(folder.parents[1], folder.name))


def _split_kind(path: Path) -> tuple[Path, str | None]:
    """See `split_kind`; a path without a kind stays as it is."""
    name, kind = split_kind(str(path))
    return path if kind is None else Path(name), kind


def _part(path: Path, kind: str | None, entry: _Entry | None) -> AveragedModel:
    folder = path.absolute()
    # an export inside the run folder would take precedence over its checkpoints
    stored = replace(
        open_run(folder.parents[1], folder.name), weights=checkpoint_weights(path, kind)
    )
    return AveragedModel(path, stored, entry and entry.update, entry and entry.score)


def _find_entry(run: Path, name: str) -> _Entry | None:
    """Return the entry of a checkpoint in the index, if there is one."""
    try:
        entries = chain.from_iterable(_read_index(run).values())
    except UserError:
        return None
    return next((entry for entry in entries if entry.name == name), None)


def _read_index(run: Path) -> dict[str, list[_Entry]]:
    path = run / CHECKPOINTS / INDEX_FILE
    try:
        index = read_index(run / CHECKPOINTS)
    except FileNotFoundError:
        raise UserError(
            f"{run}: not a run folder with checkpoints ({CHECKPOINTS}/{INDEX_FILE} is missing)"
        ) from None
    return {
        "last": [_entry(path, entry["name"], entry.get("score")) for entry in index["last"]],
        "best": [_entry(path, entry["name"], entry["score"]) for entry in index["best"]],
    }


def _entry(path: Path, name: str, score: float | None) -> _Entry:
    match = re.fullmatch(r"update_(\d{1,18})", name)
    if match is None:
        raise UserError(
            f"{path}: is damaged ({name!r} is not the name of a checkpoint); name the checkpoints "
            "themselves"
        )
    return _Entry(name, int(match[1]), score)
