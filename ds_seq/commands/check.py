"""`ds-seq check`: check an experiment file before using a queue slot or a GPU for it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ds_seq.commands.parser import add_overrides, command_parser
from ds_seq.config.deepspeed import engine_config_for, zero_stage
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.gpu_notes import gpu_notes
from ds_seq.config.load import dump, load_experiment
from ds_seq.config.model import ExternalRouterConfig
from ds_seq.config.notes import notes
from ds_seq.config.options import options_table
from ds_seq.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Print the resolved experiment, the DeepSpeed dictionary and the parameter counts."""
    parser = command_parser(
        "check",
        "Check an experiment file and print its resolved settings. Exit code 2 on a mistake.",
        abbreviations=True,
    )
    parser.add_argument("experiment", nargs="?", help="experiment file (YAML)")
    add_overrides(parser)
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="also check that the run fits N ranks"
    )
    parser.add_argument(
        "--options", action="store_true", help="print a table of all options instead"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.options:
        print(options_table(), end="")
        return 0
    if arguments.experiment is None:
        raise UserError("ds-seq check: no experiment file; name one, or use --options")
    if arguments.world_size is not None and arguments.world_size < 1:
        raise UserError("ds-seq check: --world-size must be at least 1")
    config = load_experiment(arguments.experiment, arguments.overrides)
    print(report(config, arguments.world_size), end="")
    return 0


def report(config: ExperimentConfig, world_size: int | None = None) -> str:
    """Return the report in three parts, each under a YAML comment, so the first is valid YAML."""
    engine = engine_config_for(config, world_size=world_size)
    return "\n".join(
        [
            "# experiment, with all defaults",
            dump(config),
            f"# DeepSpeed dictionary ({config.train.deepspeed or 'no JSON file'})",
            json.dumps(engine, indent=2),
            "",
            "# parameters",
            *_size_lines(config),
            *_note_lines(config, zero_stage(engine)),
            "",
        ]
    )


def _note_lines(config: ExperimentConfig, stage: int) -> list[str]:
    lines = [*notes(config), *gpu_notes(config, stage)]
    return ["", "# notes", *lines] if lines else []


def _size_lines(config: ExperimentConfig) -> list[str]:
    model, vocab_size = config.model, config.data.vocab.size
    size = model.num_params(vocab_size)
    if size is None:
        return [f"not known for the external model {model.name}"]
    lines = [
        f"total   {size.total:>16,}   with a vocabulary of {vocab_size:,}",
        f"active  {size.active:>16,}   used per token",
    ]
    if model.moe is not None:
        ranks = config.train.expert_parallel
        on_rank = size.total - size.experts + size.experts // ranks
        dense = model.model_copy(update={"moe": None}).num_params(vocab_size)
        assert dense is not None
        lines += [
            f"experts {size.experts:>16,}   {model.num_moe_layers} layers x "
            f"{model.moe.num_experts} experts",
            f"rank    {on_rank:>16,}   with train.expert_parallel {ranks}, before ZeRO",
            f"dense   {dense.total:>16,}   the same model without experts",
        ]
        if isinstance(model.moe.router, ExternalRouterConfig):
            lines.append(f"without the router {model.moe.router.name}, whose size is unknown")
    return lines
