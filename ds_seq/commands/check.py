"""`ds-seq check`: check an experiment file before using a queue slot or a GPU for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path

from ds_seq.commands.arguments.check import build_parser
from ds_seq.config.cost.estimate import Estimate, estimate
from ds_seq.config.cost.report import cost_lines, cost_notes, cost_values
from ds_seq.config.data import ShardsConfig
from ds_seq.config.deepspeed import engine_config_for, zero_stage
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.footprint import batch_lines, mean_length
from ds_seq.config.gpu_notes import gpu_notes
from ds_seq.config.load import dump, load_experiment
from ds_seq.config.model import ExternalRouterConfig, ModelConfig, TransformerConfig
from ds_seq.config.needs import Needs, train_manifest, unmet
from ds_seq.config.notes import notes
from ds_seq.config.outside import outside_names
from ds_seq.config.task import TranslationConfig
from ds_seq.config.world import on_world
from ds_seq.config.yaml_file import dotted
from ds_seq.errors import UserError
from ds_seq.names import CONFIG_FILE, DEFAULT_METRICS, TEXT_METRICS, VOCAB_FILE, VOCAB_FILES
from ds_seq.plugins import is_trusted
from ds_seq.scores.languages import DEFAULT_TOKENIZER, bleu_tokenizer


def main(argv: Sequence[str]) -> int:
    """Print the resolved experiment, the DeepSpeed dictionary and the parameter counts."""
    arguments = build_parser().parse_intermixed_args(argv)
    document = _document(arguments)
    if document is not None:
        print(document, end="")
        return 0
    if arguments.experiment is None:
        raise UserError("ds-seq check: no experiment file; name one, or use --options")
    config = load_experiment(arguments.experiment, arguments.overrides)
    if arguments.world_size is not None:
        config = on_world(config, arguments.world_size)
    folders = [Path(config.data.dir)]
    file = Path(arguments.experiment)
    if file.name == CONFIG_FILE:  # of a run, which holds its vocabulary, too
        folders.append(file.parent)
    needs = Needs([], []) if arguments.elsewhere else unmet(config)
    shards = Needs([], []) if arguments.elsewhere else _compared_shards(config)
    more_notes = [*_vocab_notes(config, folders), *needs.notes, *shards.notes]
    costs = _costs(config, arguments)
    if not arguments.json:
        print(report(config, arguments.world_size, more_notes, costs), end="")
    elif costs is not None:
        print(_json_report(config, more_notes, costs), end="")
    else:
        raise UserError(f"--json: the costs of model.name {config.model.name} are unknown")
    errors = [*needs.errors, *shards.errors]
    if not arguments.elsewhere:
        errors += _metric_errors(config)
    if errors:
        raise UserError("\n".join(errors))
    return 0


def _document(arguments: argparse.Namespace) -> str | None:
    """Return what an option prints instead of a report; imported here to keep `check` fast."""
    if arguments.options:
        from ds_seq.config.options import options_table

        return options_table()
    if arguments.names:
        from ds_seq.config.coming_from import names_page

        return names_page()
    if arguments.json_schema:
        from ds_seq.config.json_schema import json_schema

        return json.dumps(json_schema(), indent=2) + "\n"
    return None


def report(
    config: ExperimentConfig,
    world_size: int | None = None,
    more_notes: Sequence[str] = (),
    costs: Estimate | None = None,
) -> str:
    """Return the report in parts, each under a YAML comment, so the first is valid YAML.

    Args:
        config: the experiment.
        world_size: number of processes; None if unknown.
        more_notes: notes on files.
        costs: what a run takes; None if it is not known.
    """
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
            *_outside_lines(config),
            "",
            "# batches",
            *batch_lines(config, world_size, train_manifest(config)),
            "",
            *([] if costs is None else cost_lines(costs)),
            *_notes_part(_all_notes(config, zero_stage(engine), more_notes, costs)),
        ]
    )


def _all_notes(
    config: ExperimentConfig, stage: int, more: Sequence[str], costs: Estimate | None
) -> list[str]:
    about_costs = [] if costs is None else cost_notes(costs)
    return [*notes(config), *gpu_notes(config, stage), *about_costs, *more]


def _json_report(config: ExperimentConfig, more_notes: Sequence[str], costs: Estimate) -> str:
    lines = _all_notes(config, costs.layout.stage, more_notes, costs)
    return json.dumps({**cost_values(costs), "notes": lines}, indent=2) + "\n"


def _costs(config: ExperimentConfig, arguments: argparse.Namespace) -> Estimate | None:
    """Return what a run takes; None for a model whose size is unknown."""
    engine = engine_config_for(config, world_size=arguments.world_size)
    length = arguments.sentence_length or mean_length(train_manifest(config))
    return estimate(config, engine, arguments.world_size, length, arguments.gpu_memory)


def _outside_lines(config: ExperimentConfig) -> list[str]:
    """Return the code from outside ds_seq that a training would run; `check` itself runs none."""
    names = list(outside_names(config))
    if not names:
        return []
    lines = [
        f"{dotted(path)}: {name}"
        + ("" if is_trusted(name) else f"   not trusted; to run it, add --trust {name}")
        for path, name in names
    ]
    return ["", "# code from outside ds_seq", *lines]


def _notes_part(lines: Sequence[str]) -> list[str]:
    return ["# notes", *lines, ""] if lines else []


def _vocab_notes(config: ExperimentConfig, folders: Sequence[Path]) -> list[str]:
    """Return notes on existing vocabularies that rewrite text, or do not although they should."""
    joint = config.data.vocab.joint
    names = (VOCAB_FILE,) if joint else VOCAB_FILES
    found = [folder for folder in folders if all(isfile(folder / name) for name in names)]
    if not found:
        return []
    from ds_seq.text.build import load_tokenizers, vocab_notes  # imports sentencepiece

    lines = []
    for folder in found:
        tokenizers = load_tokenizers(config.data, folder)
        sections = config.data.vocab.parts.values()
        for name, section, tokenizer in zip(names, sections, tokenizers, strict=False):
            lines += vocab_notes(section, tokenizer, folder / name)
    return lines


def _compared_shards(config: ExperimentConfig) -> Needs:
    """Return what `train` would say about existing shards that are not those of the experiment.

    Shards whose manifest cannot be read are left to `ds-seq prepare`, which makes them again.
    """
    folder = Path(config.data.dir)
    splits = ["train", *(["valid"] if config.train.validate_every is not None else [])]
    paths = {split: folder / f"{split}.manifest.json" for split in splits}
    found = Needs([], [])
    if not isinstance(config.data.source, ShardsConfig) or not any(map(isfile, paths.values())):
        return found
    from ds_seq.data.expected import expected_by_experiment  # imports numpy
    from ds_seq.data.manifest import Manifest
    from ds_seq.data.origin import compare

    for split, path in paths.items():
        try:
            manifest = Manifest.read(path)
        except UserError:
            continue
        expected = expected_by_experiment(config.data, split)
        try:
            errors, lines = compare(manifest, folder, split, expected)
        except UserError as error:  # text that cannot be read
            errors, lines = [str(error)], []
        found.errors.extend(errors)
        found.notes.extend(line for line in lines if line not in found.notes)
    return found


def _metric_errors(config: ExperimentConfig) -> list[str]:
    """Return a line for each metric of validation that cannot be computed on this machine."""
    metrics = [name for name in config.validation.metrics if name in TEXT_METRICS]
    if config.train.validate_every is None or not isinstance(config.task, TranslationConfig):
        return []
    has_spaces = bleu_tokenizer(config.data.target_lang) == DEFAULT_TOKENIZER
    if has_spaces and set(metrics) <= set(DEFAULT_METRICS):
        return []  # spares the import
    from ds_seq.scores.metric import find_metric

    errors = []
    for name in metrics:
        try:
            find_metric(name, config.data.target_lang, "validation.metrics")
        except UserError as error:
            errors.append(f"validation.metrics: {error}")
    return errors


def _size_lines(config: ExperimentConfig) -> list[str]:
    model, vocab = config.model, config.data.vocab
    sizes = (vocab.target_side.size, vocab.source_side.size)
    size = model.num_params(*sizes)
    if size is None:
        return [f"not known for the external model {model.name}"]
    lines = [
        f"total   {size.total:>16,}   with "
        + (
            f"a vocabulary of {vocab.size:,}"
            if vocab.joint
            else f"vocabularies of {sizes[1]:,} and {sizes[0]:,}"
        ),
        f"active  {size.active:>16,}   used per token",
    ]
    lines += _packed_lines(model, size.total)
    if model.moe is not None:
        ranks = config.train.expert_parallel
        on_rank = size.total - size.experts + size.experts // ranks
        dense = model.model_copy(update={"moe": None}).num_params(*sizes)
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


def _packed_lines(model: ModelConfig, total: int) -> list[str]:
    """Return how large an export with packed weights will be."""
    if not isinstance(model, TransformerConfig) or model.linear.packed_bits is None:
        return []
    bits, packed = model.linear.packed_bits, model.linear_weights()
    size = packed * bits / 8 + 4 * (total - packed)
    return [
        f"packed  {packed:>16,}   weights of {bits} bits; ds-seq export --format bitnet: about "
        f"{size / 1e6:,.1f} MB instead of {4 * total / 1e6:,.1f}"
    ]
