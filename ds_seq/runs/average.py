"""``ds-seq average``: the mean of several checkpoints, as one model that costs what one costs.

The mean over the last or the best states of a training usually translates better than each of them
(Vaswani et al., 2017, "Attention Is All You Need", section 6.1, arXiv:1706.03762). So may that of
trainings which started from one model (Wortsman et al., 2022, "Model soups", arXiv:2203.05482);
models that started apart have no common order of hidden units, and their mean is of no use.

Tensors are read by name, experts by global index, so it does not matter on which layout, or in
which format, a checkpoint was written. At any time there are the new model and one tensor, or one
expert's, of the others.

Legend: ``E`` experts.
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
from ds_seq.runs.formats.ds_seq import CONFIG_FILE, find_checkpoint
from ds_seq.runs.open import open_run
from ds_seq.weights.fill import expert_offsets, model_tensors, read_like
from ds_seq.weights.source import CHECKPOINTS, INDEX_FILE, META_FILE, TensorFolder, TensorSource

NOTE_KEY = "ds_seq.averaged"  # in the header of the weights file: what was averaged, as JSON

# of a model section, without a say in what its weights mean once they are trained
_TRAINING_ONLY = frozenset(
    ("preset", "dropout", "attention_dropout", "activation_dropout", "activation_checkpointing")
)


class AveragedModel(NamedTuple):
    """One of the models that are averaged."""

    path: Path
    run: StoredRun
    update: int | None
    """Of the checkpoint; ``None`` where nobody tells, as in an export."""
    score: float | None
    """Of its validation, where there was one."""


class _Entry(NamedTuple):
    """A checkpoint as the index of its run has it."""

    name: str
    update: int
    score: float | None


def mean(values: Iterable[Tensor]) -> Tensor:
    """The mean of tensors, looked at one after the other.

    Floating-point numbers are summed in float64. For float32 and shorter formats that is all but
    exact: the order does not matter, and the mean of equal ones is what they are.

    Whole numbers, such as the balancing bias of a router in units of its step, stay whole: theirs
    is the whole number nearest to the exact mean, of two the even one. It is half a step off at
    most, which is less than what the next update would have moved it by.

    Args:
        values: at least one; all of one shape, and floating-point numbers all or none.

    Returns:
        float64 or int64, of the same shape.
    """
    rest = iter(values)
    first, count = next(rest), 1
    if first.is_floating_point():
        total = first.to(torch.float64, copy=True)
        del first  # a large tensor is gone before the next one is read
        for value in rest:
            total += value
            count += 1
            del value
        return total.div_(count)
    origin = first.to(torch.int64)
    # sums of differences: large numbers that are alike do not overflow
    total = torch.zeros_like(origin)
    for value in rest:
        total += value.to(torch.int64) - origin
        count += 1
    below = origin + total.div(count, rounding_mode="floor")
    twice = 2 * total.remainder(count)
    return below + ((twice > count) | ((twice == count) & (below % 2 == 1)))


def average(runs: Sequence[StoredRun]) -> nn.Module:
    """The mean of models of one kind.

    Args:
        runs: at least one. The first says how the new model is built.

    Returns:
        A new model on the CPU, in float32, with all experts.

    Raises:
        UserError: another model section or vocabulary, or a file that is damaged.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_same(first, other)
    model = build_model(first.model_config, first.tokenizers.size, 1, 0, seed=first.seed)
    fill_with_mean(model, [run.weights for run in runs])
    return model


@torch.no_grad()
def fill_with_mean(model: nn.Module, sources: Sequence[TensorSource]) -> None:
    """Write the mean of ``sources`` into all tensors of ``model``; none has more, none has less.

    Args:
        model: whole, on one rank.
        sources: at least one.

    Raises:
        UserError: a source holds another model.
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


def _read(
    sources: Sequence[TensorSource], name: str, like: Tensor, expert: int | None
) -> Iterator[Tensor]:
    for source in sources:
        yield read_like(source, name, like.shape, like.dtype, expert)


def _check_keys(model: nn.Module, offsets: Mapping[str, int], source: TensorSource) -> None:
    """Refuse what reading tensor by tensor would not notice: experts or tensors left over."""
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
            f"{source.path}: has {foreign[0]!r}, which the model of its experiment has not; "
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
        yield key, _said(ours), _said(theirs)


def _said(value: Any) -> str:
    """A section that only one of two experiments has need not be told in full."""
    return "given" if isinstance(value, dict) else json.dumps(value)


def listed_models(
    run: Path, which: str, count: int, until: int | None = None
) -> list[AveragedModel]:
    """Checkpoints that the index of a run names.

    Args:
        run: the run folder.
        which: ``last``, in the order of their updates, or ``best``, the best first.
        count: how many.
        until: the last update to consider; ``None`` takes them all.

    Raises:
        UserError: not a run folder, or it has fewer.
    """
    entries = _read_index(run)[which]
    found = [entry for entry in entries if until is None or entry.update <= until]
    if len(found) < count:
        kind = "most recent" if which == "last" else "best"
        bound = "" if until is None else f" up to update {until}"
        raise UserError(
            f"{run}: has kept {len(found)} of its {kind} checkpoints{bound}, not {count}; ask for "
            "fewer. train.keep_last and train.keep_best say how many of the most recent and of "
            "the best stay"
        )
    chosen = found[:count] if which == "best" else found[-count:]
    return [_part(run / CHECKPOINTS / entry.name, entry) for entry in chosen]


def named_model(path: Path) -> AveragedModel:
    """A checkpoint in its run folder, the best checkpoint of a run folder, or an export.

    Raises:
        UserError: none of them, or damaged.
    """
    if not (path / META_FILE).is_file():
        if not (path / CHECKPOINTS).is_dir():
            return AveragedModel(path, open_run(path, "best"), None, None)
        path = find_checkpoint(path, "best")
    folder = path.absolute()  # links stay: RUN/checkpoints may lie on another disk
    if folder.parent.name != CHECKPOINTS or not (folder.parents[1] / CONFIG_FILE).is_file():
        raise UserError(
            f"{path}: a checkpoint outside its run folder, without experiment and vocabulary; "
            f"it belongs into RUN/{CHECKPOINTS}"
        )
    return _part(path, _find_entry(folder.parents[1], folder.name))


def _part(path: Path, entry: _Entry | None) -> AveragedModel:
    folder = path.absolute()
    # an export that somebody has put into the run folder would come first there
    stored = replace(
        open_run(folder.parents[1], folder.name), weights=TensorFolder(path, "weights")
    )
    return AveragedModel(path, stored, entry and entry.update, entry and entry.score)


def _find_entry(run: Path, name: str) -> _Entry | None:
    """What the index says of a checkpoint, if there is an index that says anything."""
    try:
        kept = chain.from_iterable(_read_index(run).values())
    except UserError:
        return None
    return next((entry for entry in kept if entry.name == name), None)


def _read_index(run: Path) -> dict[str, list[_Entry]]:
    path = run / CHECKPOINTS / INDEX_FILE
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {which: [_entry(**entry) for entry in index[which]] for which in ("last", "best")}
    except OSError:
        raise UserError(
            f"{run}: not a run folder with checkpoints ({CHECKPOINTS}/{INDEX_FILE} is missing)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); name the checkpoints themselves") from None


def _entry(name: str, score: float | None = None) -> _Entry:
    match = re.fullmatch(r"update_(\d+)", name)
    if match is None:
        raise ValueError(f"{name!r} is no name of a checkpoint")
    return _Entry(name, int(match[1]), None if score is None else float(score))
