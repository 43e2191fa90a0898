"""The experiment and the DeepSpeed JSON that do what a command of `fairseq-train` does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_seq.compat.fairseq.adaptive import ADAPTIVE
from ds_seq.compat.fairseq.architectures import LAYERS
from ds_seq.compat.fairseq.command import BY_DEST, Given
from ds_seq.compat.fairseq.convolutions import gated_section, is_gated
from ds_seq.compat.fairseq.criterion import CriterionReader
from ds_seq.compat.fairseq.data import Sides, data_section, find_sides
from ds_seq.compat.fairseq.flag import changes
from ds_seq.compat.fairseq.language_models import LM_TASK
from ds_seq.compat.fairseq.masked_models import is_masked_model
from ds_seq.compat.fairseq.model import model_section
from ds_seq.compat.fairseq.noise import (
    NOISY,
    is_noisy,
    noisy_criterion,
    noisy_model,
    noisy_task,
)
from ds_seq.compat.fairseq.noise_flags import NOISE_FLAGS
from ds_seq.compat.fairseq.recurrent import is_lstm, lstm_section, refuse_lstm_flags
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.compat.fairseq.schedule import optimizer_section, scheduler_section
from ds_seq.compat.fairseq.task_flags import ELSEWHERE
from ds_seq.compat.fairseq.text_flags import TEXT_FLAGS
from ds_seq.compat.fairseq.text_model import (
    LANGUAGE_MODELS,
    is_text,
    task_section,
    text_criterion,
    text_model,
)
from ds_seq.compat.fairseq.training import TrainReader
from ds_seq.config.load import read_experiment

COMMAND = "from-fairseq"

_TASKS = (
    LM_TASK,
    *NOISY,
    "translation",
    "translation_with_kd",
    "seq2seq_lm_distillation",
    "translation_deepspeed",
)
_DEFAULT_SAVE_DIR = "checkpoints"


@dataclass(frozen=True)
class Translation:
    """What a command becomes.

    Attributes:
        experiment: content of the experiment file, without `train.deepspeed`.
        deepspeed: content of the DeepSpeed JSON.
        notes: what a user should know.
        without_effect: (flag, reason) of the flags that have none.
        needs: (checkpoint of fairseq, folder that `ds-seq import fairseq` is to make of it).
        num_processes: number of processes that fairseq would start.
        sides: what the data folder says.
        flags: names of the flags, by the option that they became.
    """

    experiment: dict[str, Any]
    deepspeed: dict[str, Any]
    notes: list[str]
    without_effect: list[tuple[str, str]]
    needs: list[tuple[str, str]]
    num_processes: int
    sides: Sides
    flags: Mapping[str, list[str]]


def translate(given: Given, valid: tuple[str, str] | None = None) -> Translation:
    """Translate a command.

    Args:
        given: the command, see `read_command`.
        valid: files with the raw source and target of the validation, or None.

    Raises:
        UserError: something cannot be translated; all of it is named, one line each.
    """
    refusals, notes = Refusals(), list[str]()
    _check_task(given, refusals)
    for dest, value in given.values.items():
        flag = BY_DEST[dest]
        owner = _owner_elsewhere(given, dest)
        if (flag.fate == "refused" or owner) and changes(flag, value):
            refusals.add(f"{flag.names[0]}: {flag.note or f'belongs to {owner}'}")
        if dest in LAYERS and isinstance(value, str) and not is_gated(given):
            refusals.add(f"{flag.names[0]}: a list belongs to --arch fconv; give a number")
    refusals.raise_any(COMMAND)
    if given["arch"] is None:
        refusals.add("--arch is missing; give one, such as --arch transformer")
        refusals.raise_any(COMMAND)
    sides = find_sides(given)
    name = _name(given, sides)
    criterion = CriterionReader(given, name, refusals, notes)
    train = TrainReader(given, refusals, notes)
    experiment: dict[str, Any] = {
        "name": name,
        **_run_dir(given),
        "data": data_section(given, name, sides, refusals, notes),
        **_task(given, refusals, notes),
        "model": _model(given, refusals, notes),
        "criterion": _own_criterion(given, refusals) or criterion.section(),
        "optimizer": optimizer_section(given, refusals, notes),
        "scheduler": scheduler_section(given, refusals, notes),
        "train": train.train_section(),
        "validation": train.validation_section(valid is not None),
        "generation": train.generation_section(),
    }
    bands = experiment["model"].get("adaptive")
    if bands and sides.dictionaries is None:  # a note says that the size is to be set
        experiment["data"]["vocab"]["size"] = max(bands["cutoffs"], default=0) + 1
    deepspeed = train.deepspeed()
    refusals.raise_any(COMMAND)
    if valid is not None and given["eval_bleu"]:
        experiment["data"]["raw"] = {"valid": {"source": valid[0], "target": valid[1]}}
    needs = [*criterion.needs, *_initial(given, name, experiment["train"], notes)]
    read_experiment(experiment)  # the file is accepted as it stands
    return Translation(
        experiment,
        deepspeed,
        notes,
        list(_without_effect(given)),
        needs,
        train.num_processes,
        sides,
        _flags_by_option(given),
    )


def _own_criterion(given: Given, refusals: Refusals) -> dict[str, Any] | None:
    """Return the section of a criterion that belongs to a task; None for another criterion."""
    return noisy_criterion(given, refusals) or text_criterion(given)


def _owner_elsewhere(given: Given, dest: str) -> str:
    """Return what a flag belongs to, if the command is of something else; else nothing."""
    flag = BY_DEST[dest]
    if dest in ADAPTIVE and not is_text(given):
        return "language models"
    if flag in TEXT_FLAGS and not (is_text(given) or is_noisy(given)):
        return "language models"
    return f"--task {' and '.join(NOISY)}" if flag in NOISE_FLAGS and not is_noisy(given) else ""


def _task(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    if is_noisy(given):
        return {"task": noisy_task(given, refusals, notes)}
    return {"task": task_section(given, refusals, notes)} if is_text(given) else {}


def _model(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    if is_noisy(given):
        return noisy_model(given, refusals, notes)
    if is_text(given):
        return text_model(given, refusals)
    if is_masked_model(given):
        refusals.add(f"--arch {given['arch']}: belongs to --task masked_lm")
        return {}
    if str(given["arch"]).startswith(LANGUAGE_MODELS):
        refusals.add(f"--arch {given['arch']}: belongs to --task {LM_TASK}")
        return {}
    if is_gated(given):
        return gated_section(given.arguments, refusals)
    if is_lstm(given):
        return lstm_section(given, refusals)
    refuse_lstm_flags(given, refusals)
    return model_section(given, refusals)


def _check_task(given: Given, refusals: Refusals) -> None:
    task = given["task"]
    if task not in _TASKS:
        why = ELSEWHERE.get(task, f"there are {', '.join(_TASKS)}")
        refusals.add(f"--task {task}: not supported; {why}")


def _name(given: Given, sides: Sides) -> str:
    """Return the name of the run: that of the folder of its checkpoints, or its languages."""
    folder = given["save_dir"].rstrip("/")
    name = Path(folder).name if folder != _DEFAULT_SAVE_DIR else ""
    name = re.sub(r"[^\w.+-]", "-", name).strip(".-")
    text = "lm" if is_text(given) else given["task"]
    return name or (text if sides.is_text else "-".join(sides.languages))


def _run_dir(given: Given) -> dict[str, str]:
    folder = given["save_dir"]
    return {} if folder.rstrip("/") == _DEFAULT_SAVE_DIR else {"run_dir": folder}


def _initial(
    given: Given, name: str, train: dict[str, Any], notes: list[str]
) -> Iterator[tuple[str, str]]:
    """Set the weights from which the training starts; yield what has to be imported for it."""
    path = given["finetune_from_model"]
    if path is None and given["restore_file"] != BY_DEST["restore_file"].default:
        path = given["restore_file"]
        if not given["reset_optimizer"]:
            notes.append(
                f"--restore-file {path}: its weights are taken; optimizer and schedule start anew, "
                "as with --reset-optimizer and --reset-lr-scheduler"
            )
    if path is not None:
        train["init_from"] = f"runs/{name}-start"
        yield path, train["init_from"]


def _without_effect(given: Given) -> Iterator[tuple[str, str]]:
    for dest in given.values:
        flag = BY_DEST[dest]
        if flag.fate == "idle":
            yield flag.names[0], flag.note


def _flags_by_option(given: Given) -> dict[str, list[str]]:
    """Return the flags of the command by option, in its order."""
    found: dict[str, list[str]] = {}
    for dest in given.values:
        flag = BY_DEST[dest]
        for option in flag.options if flag.fate == "translated" else ():
            found.setdefault(option, []).append(flag.names[0])
    return found
