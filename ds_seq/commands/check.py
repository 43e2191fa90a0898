"""`ds-seq check`: check an experiment file before using a queue slot or a GPU for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

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
from ds_seq.config.model.section import ModelSize
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
    file = Path(arguments.experiment)
    found = examine(
        load_experiment(file, arguments.overrides),
        arguments.world_size,
        arguments.gpu_memory,
        arguments.sentence_length,
        elsewhere=arguments.elsewhere,
        # of a run, which holds its vocabulary, too
        folder=file.parent if file.name == CONFIG_FILE else None,
    )
    if not arguments.json:
        print(report(found), end="")
    elif found.costs is not None:
        print(_json_report(found.costs, found.notes), end="")
    else:
        raise UserError(f"--json: the costs of model.name {found.config.model.name} are unknown")
    found.require()
    return 0


@dataclass(frozen=True)
class Checked:
    """What is known of an experiment before its run.

    Attributes:
        config: the experiment, with all defaults.
        world_size: number of ranks; None if unknown.
        engine: what DeepSpeed is configured with.
        size: number of parameters; None for an external model.
        costs: memory, arithmetic and traffic; None for a model whose size is unknown.
        notes: what may surprise, a line each.
        errors: what prevents the run on this machine, a line each.
    """

    config: ExperimentConfig
    world_size: int | None
    engine: dict[str, Any]
    size: ModelSize | None
    costs: Estimate | None
    notes: list[str]
    errors: list[str]

    def require(self) -> None:
        """Raise a `UserError` with all errors if there are any."""
        if self.errors:
            raise UserError("\n".join(self.errors))


def examine(
    config: ExperimentConfig,
    world_size: int | None = None,
    gpu_memory: float | None = None,
    sentence_length: int | None = None,
    *,
    elsewhere: bool = False,
    folder: Path | None = None,
) -> Checked:
    """Look at an experiment, at the files that it reads, and at its costs.

    Args:
        config: the experiment.
        world_size: number of ranks; None if unknown.
        gpu_memory: memory of a GPU in GiB, for the largest batch; None if unknown.
        sentence_length: tokens of a sentence; None: the mean of the data, or 32.
        elsewhere: whether the run is for another machine, so that files are not looked for.
        folder: the folder of its run, which may hold a vocabulary, too.

    Raises:
        UserError: the experiment does not fit the number of ranks or its DeepSpeed file.
    """
    if world_size is not None:
        config = on_world(config, world_size)
    folders = [Path(config.data.dir), *([] if folder is None else [folder])]
    needs = Needs([], []) if elsewhere else unmet(config)
    shards = Needs([], []) if elsewhere else _compared_shards(config)
    engine = engine_config_for(config, world_size=world_size)
    length = sentence_length or mean_length(train_manifest(config))
    costs = estimate(config, engine, world_size, length, gpu_memory)
    more = [*_vocab_notes(config, folders), *needs.notes, *shards.notes]
    about_costs = [] if costs is None else cost_notes(costs)
    lines = [*notes(config), *gpu_notes(config, zero_stage(engine)), *about_costs, *more]
    errors = [*needs.errors, *shards.errors]
    if not elsewhere:
        errors += _metric_errors(config)
    vocab = config.data.vocab
    size = config.model.num_params(vocab.target_side.size, vocab.source_side.size)
    return Checked(config, world_size, engine, size, costs, lines, errors)


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


def report(found: Checked) -> str:
    """Return the report in parts, each under a YAML comment, so the first is valid YAML."""
    config = found.config
    return "\n".join(
        [
            "# experiment, with all defaults",
            dump(config),
            f"# DeepSpeed dictionary ({config.train.deepspeed or 'no JSON file'})",
            json.dumps(found.engine, indent=2),
            "",
            "# parameters",
            *_size_lines(config, found.size),
            *_outside_lines(config),
            "",
            "# batches",
            *batch_lines(config, found.world_size, train_manifest(config)),
            "",
            *([] if found.costs is None else cost_lines(found.costs)),
            *_notes_part(found.notes),
        ]
    )


def _json_report(costs: Estimate, lines: Sequence[str]) -> str:
    return json.dumps({**cost_values(costs), "notes": lines}, indent=2) + "\n"


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


def _size_lines(config: ExperimentConfig, size: ModelSize | None) -> list[str]:
    model, vocab = config.model, config.data.vocab
    sizes = (vocab.target_side.size, vocab.source_side.size)
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
