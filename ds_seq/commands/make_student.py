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
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ds_seq import distributed
from ds_seq.commands.arguments.make_student import build_parser
from ds_seq.commands.calibration import MeasuredPairs, check_has_experts, measured_pairs
from ds_seq.config.criterion import CrossEntropyConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.fewer_layers import CopiedLayers
from ds_seq.config.load import read_experiment
from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.models.layer_maps import LayerMap, copy_map, even_map, is_tabled
from ds_seq.names import STACKS, LayerMapName, Precision, Stack
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


class _Teacher(NamedTuple):
    opened: StoredRun | LoadedRun
    path: Path
    checkpoint: str


@dataclass(frozen=True)
class MadeStudent:
    """A smaller model that was written.

    Attributes:
        path: its weights file.
        config: the experiment of its fine-tuning.
        layers: the teacher's layers that it has.
        shares: share of the tokens of each expert that was merged, by name of the layer.
        num_parameters: number of parameters of the teacher and of the student.
        depths: number of layers of each of the teacher's stacks.
    """

    path: Path
    config: ExperimentConfig
    layers: CopiedLayers
    shares: dict[str, list[float]]
    num_parameters: tuple[int, int]
    depths: dict[Stack, int]


def main(argv: Sequence[str]) -> int:
    """Run `ds-seq make-student`; return the exit code."""
    options = build_parser().parse_intermixed_args(argv)
    check_new(options.out)
    distributed.keep_freed_memory()
    teacher = _Teacher(_open(options), options.run, options.checkpoint)
    experiment = teacher.opened.require_experiment()
    given = vars(options)
    depths = {stack: given[f"{stack}_layers"] for stack in STACKS}
    lists = {stack: given[f"{stack}_copy"] for stack in STACKS}
    layers = _chosen(depths, lists, options.copy, options.dense, teacher.opened.model_config)
    sample = _sample(options, teacher.opened)
    made = _made(teacher, options.out, layers, sample, options.dtype, options.overrides)
    for stack, depth in made.depths.items():
        print(f"{stack:10}  layers {' '.join(map(str, layers.of(stack)))}  of {depth}")
    for name, values in made.shares.items():
        print(f"{name}  {' '.join(f'{share:.1%}' for share in values)}")
    old, new = made.num_parameters
    print(f"parameters  {old:,} -> {new:,} ({new / old:.1%} of the teacher's)")
    print(f"{made.path}: {made.path.stat().st_size / 1e6:,.1f} MB")
    print("\n".join(_next_commands(options, experiment, made.config)))
    return 0


def make_student(
    run: str | Path,
    out: str | Path,
    layers: Mapping[Stack, int | Sequence[int]] = MappingProxyType({}),
    *,
    copy: LayerMapName = "table",
    merged_on: MeasuredPairs | None = None,
    checkpoint: str = "best",
    dtype: Precision = "fp32",
    overrides: Sequence[str] = (),
) -> MadeStudent:
    """Make a smaller model from some layers of a trained one, like `ds-seq make-student`.

    Shleifer and Rush, 2020, "Pre-trained Summarization Distillation", arXiv:2010.13002.

    Args:
        run: run folder, export, or folder of Hugging Face.
        out: new file, if its name ends in `.safetensors`, or folder, whose `config.yaml` is the
            experiment of the fine-tuning.
        layers: by stack (`encoder`, `decoder`), the number of layers, or the teacher's layers to
            copy, from 0; a stack that is left out keeps all.
        copy: which layers a number means: by the `table` of the paper, the `first`, or `even`ly.
        merged_on: merge the experts of each layer into one feed-forward, weighted by their use on
            these pairs; None: keep them.
        checkpoint: checkpoint of the teacher.
        dtype: number format of the weights.
        overrides: settings of the student to replace, such as `model.dropout=0.2`.

    Raises:
        UserError: `out` exists, there is nothing to shrink, or the teacher has no such layers.
    """
    run, out, dense = Path(run), Path(out), merged_on is not None
    check_new(out)
    if is_huggingface(run):
        opened: StoredRun | LoadedRun = load_huggingface(run, None, None, True)
    else:
        opened = open_run(run, checkpoint)
    depths = {stack: n if isinstance(n, int) else None for stack, n in layers.items()}
    lists = {
        stack: None if isinstance(ids, int) else ",".join(map(str, ids))
        for stack, ids in layers.items()
    }
    chosen = _chosen(depths, lists, copy, dense, opened.model_config)
    sample = None if merged_on is None else _measured(merged_on, run, opened)
    return _made(_Teacher(opened, run, checkpoint), out, chosen, sample, dtype, overrides)


def _made(
    teacher: _Teacher,
    out: Path,
    layers: CopiedLayers,
    sample: Sample | None,
    dtype: Precision,
    overrides: Sequence[str],
) -> MadeStudent:
    """Make and write a student, with merged experts if there is a sample."""
    dense = sample is not None
    experiment = teacher.opened.require_experiment()
    config = fine_tuning(student_config(experiment, layers, dense), out)
    config = read_experiment(config, overrides)
    device = distributed.World().device if dense else torch.device("cpu")
    run = teacher.opened
    if isinstance(run, StoredRun):
        run = load_run(teacher.path, teacher.checkpoint, device, torch.float32)
    run.model.to(device)
    student = student_of(run, config, layers, sample, device)
    student.model.to(DTYPES[dtype])
    path = write_export(student.model, config, run.tokenizers, out, student.notes)
    old, new = (sum(p.numel() for p in model.parameters()) for model in (run.model, student.model))
    model = run.model_config
    depths = {stack: model.layers_of(stack) for stack in model.stacks}
    return MadeStudent(path, config, layers, student.shares, (old, new), depths)


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


def _chosen(
    depths: Mapping[Stack, int | None],
    lists: Mapping[Stack, str | None],
    copy: LayerMapName,
    dense: bool,
    model: ModelConfig,
) -> CopiedLayers:
    """Return the layers to copy, given numbers of layers and lists of them."""
    if strange := [stack for stack in (*depths, *lists) if stack not in STACKS]:
        raise UserError(f"layers: there is no stack {strange[0]!r}; there are {', '.join(STACKS)}")
    if not dense and all(value is None for value in (*depths.values(), *lists.values())):
        raise UserError(
            "there is nothing to shrink: give --encoder-layers, --decoder-layers or a list of "
            "layers (--encoder-copy, --decoder-copy), or merge experts with --dense"
        )
    chosen: list[list[int]] = []
    for stack in STACKS:
        if stack not in model.stacks:
            if depths.get(stack) is not None or lists.get(stack) is not None:
                raise UserError(
                    f"--{stack}-layers, --{stack}-copy: a model {model.name} has no {stack}; leave "
                    "them out"
                )
            chosen.append([])
            continue
        depth, text, limit = depths.get(stack), lists.get(stack), model.layers_of(stack)
        given = limit if depth is None else depth
        if not 1 <= given <= limit:
            raise UserError(
                f"--{stack}-layers {given}: must be from 1 to {limit}, the teacher's {stack}_layers"
            )
        layers = _MAPS[copy](limit, given) if text is None else _ids(stack, text, limit)
        if text is None and copy == "table" and not is_tabled(limit, given):
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
    measured = None
    if options.data is not None:
        measured = MeasuredPairs(options.data, options.split, options.max_tokens_measured)
    return _measured(measured, options.run, stored)


def _measured(measured: MeasuredPairs | None, run: Path, stored: StoredRun | LoadedRun) -> Sample:
    """Return the pairs on which to measure experts that are merged."""
    if len(stored.model_config.stacks) == 1:
        raise UserError(
            "--dense: the use of experts is measured on pairs, which a model "
            f"{stored.model_config.name} does not read; keep the experts"
        )
    check_has_experts(stored, run, "--dense")
    if measured is None:
        raise UserError("--dense: needs text to measure the use of experts; add --data SHARDS")
    return measured_pairs(measured, run, stored)


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
