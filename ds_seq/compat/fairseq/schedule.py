"""The sections `optimizer` and `scheduler` of a command of fairseq."""

from __future__ import annotations

from typing import Any

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.refusals import Refusals

_OPTIMIZERS = ("adam", "cpu_adam", "adafactor", "sgd", "nag")
_SCHEDULES = ("inverse_sqrt", "fixed", "polynomial_decay", "cosine")
_WARMUP = 4000  # fairseq's default of inverse_sqrt; that of the others is 0


def optimizer_section(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    """Return the section `optimizer`.

    Args:
        given: the arguments.
        refusals: gets what cannot be translated.
        notes: gets what a user should know.
    """
    name = given["optimizer"]
    if name is None:
        refusals.add("--optimizer is missing; give one, such as --optimizer adam")
        return {}
    if name not in _OPTIMIZERS:
        refusals.add(
            f"--optimizer {name}: not supported; there are {', '.join(_OPTIMIZERS)} (or an "
            "optimizer of your own, as package.module:Name, in the experiment)"
        )
        return {}
    section: dict[str, Any] = {"lr": _lr(given, refusals), "weight_decay": given["weight_decay"]}
    if section["weight_decay"]:
        notes.append("--weight-decay: norms and biases are not decayed here; in fairseq they are")
    if name in ("adam", "cpu_adam"):
        betas, eps = [float(beta) for beta in given["adam_betas"]], given["adam_eps"]
        return {"name": "adamw", **section, "betas": betas, "eps": eps}
    if name == "adafactor":
        if not given["scale_parameter"]:
            notes.append(
                "--optimizer adafactor: steps are relative to the size of a parameter, as with "
                "--scale-parameter; --lr may need another value"
            )
        more = {"beta2_decay": given["decay_rate"], "clip_threshold": given["clip_threshold"]}
        return {"name": "adafactor", **section, **more}
    momentum = given["momentum"]
    if name == "nag":
        momentum = 0.99 if momentum is None else momentum
        return {"name": "sgd", **section, "momentum": momentum, "nesterov": True}
    return {"name": "sgd", **section, "momentum": momentum or 0.0}


def _lr(given: Given, refusals: Refusals) -> float:
    rates = given["lr"]
    if len(rates) != 1:
        shown = ",".join(map(str, rates))
        refusals.add(f"--lr {shown}: a rate for each epoch is not supported; give one, the peak")
    return float(rates[0]) if rates else 0.0


def scheduler_section(given: Given, refusals: Refusals, notes: list[str]) -> dict[str, Any]:
    """Return the section `scheduler`; see `optimizer_section`."""
    name = given["lr_scheduler"]
    if name not in _SCHEDULES:
        refusals.add(f"--lr-scheduler {name}: not supported; there are {', '.join(_SCHEDULES)}")
        return {}
    default = _WARMUP if name == "inverse_sqrt" else 0
    warmup = default if given["warmup_updates"] is None else given["warmup_updates"]
    initial = given["warmup_init_lr"]
    if name == "inverse_sqrt":
        if warmup < 1:
            refusals.add("--warmup-updates 0: the rate falls from the end of the warm-up; give 1")
        return {"name": name, "warmup_updates": warmup, "warmup_init_lr": max(0.0, initial)}
    if name == "fixed":
        return {"name": "constant", "warmup_updates": warmup}
    last = given["max_update"] or None
    if name == "polynomial_decay":
        total = given["total_num_update"]
        return {
            "name": "polynomial",
            "warmup_updates": warmup,
            "power": given["power"],
            "end_lr": given["end_learning_rate"],
            **_total(given, last if total is None else total, refusals),
        }
    if initial > 0:
        notes.append("--warmup-init-lr: the warm-up of the cosine starts at 0 here")
    period = given["lr_period_updates"]
    total = last if period <= 0 else period + warmup
    if last is not None and total is not None and last > total:
        notes.append(
            f"--lr-period-updates {period:g}: after it, the rate stays at its minimum; in fairseq "
            "another period follows"
        )
    return {
        "name": "cosine",
        "warmup_updates": warmup,
        "min_lr": given["min_lr"],
        **_total(given, total, refusals),
    }


def _total(given: Given, total: float | None, refusals: Refusals) -> dict[str, int]:
    if total is None:
        refusals.add(
            f"--lr-scheduler {given['lr_scheduler']}: needs --max-update, at which the decay ends"
        )
        return {}
    return {"total_updates": int(total)}
