"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ds_seq.activity import HANG_SECONDS
from ds_seq.commands.parser import Number
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.options import described
from ds_seq.names import INT8, PRECISIONS, STACKS, Stack

CHECKPOINT_HELP = (
    "best, last, a name or a path; best:raw and the like do without the average of train.ema "
    "(default: %(default)s)"
)
RUN_HELP = "run folder, or a file or folder written by `ds-seq export`"
EXPORT_DTYPES = sorted(PRECISIONS)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the options of `add_loading_arguments`."""
    parser.add_argument("run", help=RUN_HELP)
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for loading trained models, and that of `add_local_rank`."""
    add = parser.add_argument
    add("--checkpoint", default="best", help=CHECKPOINT_HELP)
    add("--device", help="cpu, cuda:1, ... (default: a GPU if there is one)")
    add(
        "--dtype",
        choices=[*PRECISIONS, INT8],
        help="number format; int8 rounds the weights, on a CPU only (default: as trained on a GPU, "
        "fp32 on a CPU)",
    )
    add("--expert-parallel", type=int, default=1, metavar="N",
        help="spread the experts over N processes (default: all experts on each)")  # fmt: skip
    add_local_rank(parser)


def layer_list(text: str) -> list[int]:
    """Read indices of layers such as `0,2,4`, in ascending order; the `type` of an option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"should be layers such as 0,2,4, not {text!r}")
    return sorted(map(int, parts))


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the layers to load, see `chosen_layers`."""
    for stack in STACKS:
        parser.add_argument(
            f"--{stack}-layers-to-keep",
            type=layer_list,
            metavar="I,J,...",
            help=f"use only these layers of the {stack}, counted from 0, of a model that was "
            "trained with model.layer_drop (default: all)",
        )


def chosen_layers(args: argparse.Namespace) -> dict[Stack, list[int]]:
    """Return the layers that the options of `add_layers` choose, by stack."""
    given = {stack: vars(args)[f"{stack}_layers_to_keep"] for stack in STACKS}
    return {stack: layers for stack, layers in given.items() if layers is not None}


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an adapter, a part, and the layers of a model."""
    add_layers(parser)
    parser.add_argument(
        "--adapter",
        metavar="ID",
        help="adapter that all sentences pass through; none: no adapter (default: as "
        "model.adapters says, by the tag of a sentence)",
    )
    parser.add_argument(
        "--part",
        metavar="FILE",
        help="file written by `ds-seq export --only`: adapters or low-rank changes for this model",
    )


def add_hang_seconds(parser: argparse.ArgumentParser) -> None:
    """Add the limit of the watchdog, `train.hang_seconds` for commands that generate."""
    parser.add_argument(
        "--hang-seconds",
        type=Number(1, is_whole=False),
        default=HANG_SECONDS,
        metavar="S",
        help="end all processes if one has died, or has made no progress for S seconds (default: "
        "%(default)g)",
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Add the option that the deepspeed launcher puts before all others.

    Its value is not used, because the environment has it, too.
    """
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_search_arguments(
    parser: argparse.ArgumentParser, names: Sequence[str] = tuple(GenerationConfig.model_fields)
) -> None:
    """Add one option for each field of `GenerationConfig`, or for some of them."""
    search = parser.add_argument_group(
        "search (an option that is not given is as in the experiment, whose defaults are shown)"
    )
    for name in names:
        option = described(GenerationConfig, name)
        kind = "" if option.metavar.startswith("{") else f"{option.kind}; "
        help = f"{option.meaning} ({kind}default: {option.default})".replace("%", "%%")
        search.add_argument(f"--{name.replace('_', '-')}", metavar=option.metavar, help=help)
