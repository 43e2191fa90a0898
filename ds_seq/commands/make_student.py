"""`ds-seq make-student`: make a smaller model from some layers of a trained one, for fine-tuning.

    ds-seq make-student runs/teacher --out runs/student --encoder-layers 6 --decoder-layers 3

See `ds_seq.surgery.student`. The student is an ordinary export: it can translate as it is, and
`config.yaml` in its folder is the experiment of its fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ds_seq import distributed
from ds_seq.commands.arguments.make_student import build_parser
from ds_seq.commands.calibration import check_has_experts, measured_pairs
from ds_seq.config.criterion import CrossEntropyConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.fewer_layers import CopiedLayers
from ds_seq.config.load import read_experiment
from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.models.layer_maps import LayerMap, copy_map, even_map, is_tabled
from ds_seq.names import STACKS, LayerMapName, Stack
from ds_seq.runs.card import LoadedRun, StoredRun
from ds_seq.runs.export import check_new, write_export
from ds_seq.runs.foreign import is_huggingface, load_huggingface
from ds_seq.runs.formats.ds_seq import CONFIG_FILE, EXPORT_SUFFIX
from ds_seq.runs.open import DTYPES, load_run, open_run
from ds_seq.surgery.shrink import student_config
from ds_seq.surgery.student import Sample, fine_tuning, student_of

_MAPS: dict[LayerMapName, LayerMap] = {
    "table": copy_map,
    "first": lambda teacher, student: list(range(student)),
    "even": even_map,
}


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq make-student`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    stored = _open(options)
    experiment = stored.require_experiment()
    layers = _chosen(options, stored.model_config)
    sample = _sample(options, stored)
    config = fine_tuning(student_config(experiment, layers, options.dense), options.out)
    config = read_experiment(config, options.overrides)
    device = distributed.World().device if options.dense else torch.device("cpu")
    run = stored
    if isinstance(run, StoredRun):
        run = load_run(options.run, options.checkpoint, device, torch.float32)
    run.model.to(device)
    student = student_of(run, config, layers, sample, device)
    student.model.to(DTYPES[options.dtype])
    path = write_export(student.model, config, run.tokenizers, options.out, student.notes)
    for stack in run.model_config.stacks:
        of_depth = f"of {run.model_config.layers_of(stack)}"
        print(f"{stack:10}  layers {' '.join(map(str, layers.of(stack)))}  {of_depth}")
    for name, values in student.shares.items():
        print(f"{name}  {' '.join(f'{share:.1%}' for share in values)}")
    old, new = (sum(p.numel() for p in model.parameters()) for model in (run.model, student.model))
    print(f"parameters  {old:,} -> {new:,} ({new / old:.1%} of the teacher's)")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    print("\n".join(_next_commands(options, experiment, config)))
    return 0


def _open(options: argparse.Namespace) -> StoredRun | LoadedRun:
    """Open the teacher; a folder of Hugging Face is imported in memory."""
    languages = (options.source_lang, options.target_lang)
    if is_huggingface(options.run):
        if options.checkpoint not in ("best", "last"):
            raise UserError(
                f"--checkpoint {options.checkpoint}: {options.run} holds one state only"
            )
        return load_huggingface(options.run, *languages, not options.no_compare)
    if any(languages) or options.no_compare:
        raise UserError(
            f"--source-lang, --target-lang and --no-compare: {options.run} is no folder of Hugging "
            "Face; leave them out"
        )
    return open_run(options.run, options.checkpoint)


def _chosen(options: argparse.Namespace, model: ModelConfig) -> CopiedLayers:
    """Return the layers that the command line selects."""
    given_options = vars(options)
    depths = {stack: given_options[f"{stack}_layers"] for stack in STACKS}
    lists = {stack: given_options[f"{stack}_copy"] for stack in STACKS}
    if not options.dense and all(value is None for value in (*depths.values(), *lists.values())):
        raise UserError(
            "there is nothing to shrink: give --encoder-layers, --decoder-layers or a list of "
            "layers (--encoder-copy, --decoder-copy), or merge experts with --dense"
        )
    chosen: list[list[int]] = []
    for stack in STACKS:
        if stack not in model.stacks:
            if depths[stack] is not None or lists[stack] is not None:
                raise UserError(
                    f"--{stack}-layers, --{stack}-copy: a model {model.name} has no {stack}; leave "
                    "them out"
                )
            chosen.append([])
            continue
        depth, text, limit = depths[stack], lists[stack], model.layers_of(stack)
        given = limit if depth is None else depth
        if not 1 <= given <= limit:
            raise UserError(
                f"--{stack}-layers {given}: must be from 1 to {limit}, the teacher's {stack}_layers"
            )
        layers = _MAPS[options.copy](limit, given) if text is None else _ids(stack, text, limit)
        if text is None and options.copy == "table" and not is_tabled(limit, given):
            print(
                f"ds-seq: warning: no tested choice of {given} of {limit} layers ({stack}); taking "
                f"evenly spaced ones ({' '.join(map(str, layers))}); --copy first takes the first",
                file=sys.stderr,
            )
        if depth is not None and len(layers) != depth:
            raise UserError(
                f"--{stack}-copy {text}: names {len(layers)} layers, but --{stack}-layers is "
                f"{depth}; the list alone is enough"
            )
        chosen.append(layers)
    return CopiedLayers(*chosen)


def _ids(stack: Stack, text: str, limit: int) -> list[int]:
    """Parse layers such as `0,2,5`, keeping their order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--{stack}-copy {text}: give layers of the teacher such as 0,2,5")
    ids = [int(part) for part in parts]
    if max(ids) >= limit:
        raise UserError(
            f"--{stack}-copy {text}: there is no layer {max(ids)}; the teacher's {stack} has "
            f"{limit}, from 0 to {limit - 1}"
        )
    if len(ids) > limit:
        raise UserError(f"--{stack}-copy {text}: names more layers than the {limit} of the teacher")
    return ids


def _sample(options: argparse.Namespace, stored: StoredRun | LoadedRun) -> Sample | None:
    """Return the pairs on which to measure experts; None without `--dense`."""
    if not options.dense:
        if options.data is not None:
            raise UserError("--data: only used with --dense; give both or neither")
        return None
    if len(stored.model_config.stacks) == 1:
        raise UserError(
            "--dense: the use of experts is measured on pairs, which a model "
            f"{stored.model_config.name} does not read; keep the experts"
        )
    check_has_experts(stored, options.run, "--dense")
    if options.data is None:
        raise UserError("--dense: needs text to measure the use of experts; add --data SHARDS")
    return measured_pairs(options, stored)


def _next_commands(
    options: argparse.Namespace, teacher: ExperimentConfig, student: ExperimentConfig
) -> Iterator[str]:
    """Yield the commands to fine-tune the student, without and with its teacher."""
    ranks = student.train.expert_parallel
    train = "ds-seq train" if ranks == 1 else f"deepspeed --num_gpus {ranks} ds_seq/train.py"
    if options.out.suffix == EXPORT_SUFFIX:
        file = options.run / CONFIG_FILE if options.run.is_dir() else Path("TEACHER.yaml")
        changes = _differences(teacher.model_dump(mode="json"), student.model_dump(mode="json"))
    else:
        file, changes = options.out / CONFIG_FILE, iter(())
    words = [shlex.quote(word) for word in (str(file), *changes)]
    yield f"fine-tune:         {train} {' '.join(words)}"
    key, criterion = student.base_criterion
    if isinstance(criterion, CrossEntropyConfig):
        run: Path = options.run
        if is_huggingface(run):
            run = options.out.with_name(f"{options.run.resolve().name}-teacher")
            languages = f"--source-lang {student.data.source_lang} "
            languages += f"--target-lang {student.data.target_lang}"
            command = f"ds-seq import huggingface {options.run} --out {run} {languages}"
            yield f"a run of the teacher, for the next line:  {command}"
        section = {"name": "distillation", "teacher": str(run)}
        if options.checkpoint != "best":
            section["checkpoint"] = options.checkpoint
        words.append(shlex.quote(f"{key}={json.dumps(section)}"))
        yield f"with its teacher:  {train} {' '.join(words)}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the overrides (`dotted.key=value`) that turn one experiment into another."""
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differences(before, value, f"{above}{key}.")
        elif value != before:
            plain = isinstance(value, str) and re.fullmatch(r"[\w./+-]+", value)
            yield f"{above}{key}={value if plain else json.dumps(value)}"
