"""The options that constrain translations: they name files, or a symbol of the vocabulary."""

from __future__ import annotations

import argparse

from ds_seq.errors import UserError
from ds_seq.generation.steering import Given, Steering
from ds_seq.names import CONSTRAINT_ORDERS
from ds_seq.text.lines import read_lines


def read_steering(args: argparse.Namespace) -> Steering:
    """Read the files that the arguments name.

    Raises:
        UserError: a file is missing or not text, or an option would have no effect.
    """
    if args.constraint_order is not None and args.constraints is None:
        raise UserError("--constraint-order: has no effect without --constraints FILE")
    allowed = _read("allowed", args.allowed)
    if allowed is not None and not allowed.lines:
        raise UserError(f"{allowed.name}: is empty; give at least one allowed output")
    return Steering(
        _read("prefix", args.prefix),
        args.target_tag,
        "--target-tag",
        _read("constraints", args.constraints),
        args.constraint_order or CONSTRAINT_ORDERS[0],
        allowed,
    )


def _read(option: str, path: str | None) -> Given | None:
    if path is None:
        return None
    return Given(option, f"--{option} {path}", read_lines(path, tabs=option != "prefix"), True)
