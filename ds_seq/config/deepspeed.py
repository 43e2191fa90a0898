"""Build the dictionary for `deepspeed.initialize` from the experiment and the DeepSpeed JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_seq.config.deepspeed_keys import (
    FIXED,
    OWNED,
    OWNED_BELOW,
    PASSED,
    REFUSED,
    Keys,
    is_kind,
    wanted_instead,
)
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.optim import AdafactorConfig
from ds_seq.config.schema import paths_of_key
from ds_seq.config.shipped import configs_folder
from ds_seq.config.train import TrainConfig
from ds_seq.config.world import check_world
from ds_seq.errors import UserError
from ds_seq.plugins import nearest
from ds_seq.records import read_limited

AUTO = "auto"
MAX_STAGE = 3

_DATA_TYPES, _SUM_TYPE = "data_types", "grad_accum_dtype"

JsonObject = dict[str, Any]


def load_deepspeed_json(path: str | Path | None) -> JsonObject:
    """Read a DeepSpeed JSON; without a path, return an empty one.

    Raises:
        UserError: the file is missing, not JSON, not an object, or contains a key twice.
    """
    if path is None:
        return {}
    file = Path(path)
    try:
        content = read_limited(file)
    except FileNotFoundError as error:
        raise UserError(
            f"train.deepspeed: {file} cannot be read: {error.strerror}; {_own_file(file)}, and "
            "null means DeepSpeed's defaults"
        ) from None
    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}: not valid JSON: nested too deeply") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: contains no JSON object; expected {{...}}")
    return data


def _own_file(missing: Path) -> str:
    """Return where the file of this name is, if ds_seq has one."""
    folder = configs_folder() / "ds_config"
    if (folder / missing.name).is_file():
        return f"give {folder / missing.name}, or copy it there"
    return f"ds_seq's own are in {folder if folder.is_dir() else 'configs/ds_config'}"


def _no_key_twice(pairs: list[tuple[str, Any]]) -> JsonObject:
    table: JsonObject = {}
    for key, value in pairs:
        if key in table:
            raise UserError(f"key {key!r} is given twice; remove one")
        table[key] = value
    return table


def engine_config_for(config: ExperimentConfig, *, world_size: int | None = None) -> JsonObject:
    """Return the DeepSpeed dictionary of an experiment, including its JSON file.

    Args:
        config: the experiment.
        world_size: number of ranks; None if unknown.

    Raises:
        UserError: the settings are invalid; lists every error, one per line.
    """
    ds_json = load_deepspeed_json(config.train.deepspeed)
    if config.train.deepspeed is None:
        ds_json = _default_json(config)
    findings = _optimizer_errors(config, zero_stage(ds_json))
    moe = config.model.moe is not None
    engine: JsonObject = {}
    try:
        engine = engine_config(config.train, ds_json, moe=moe, world_size=world_size)
    except UserError as error:
        findings = [*str(error).splitlines(), *findings]
    if findings:
        raise UserError("\n".join(findings))
    return engine


def _default_json(config: ExperimentConfig) -> JsonObject:
    """Return the settings of an experiment without a DeepSpeed JSON.

    In half precision this is ZeRO stage 1, also on a single rank: stage 0 adds up micro-batches in
    half precision and waits for the device once per parameter. On an NVIDIA H200, a bf16 step took
    116 ms in stage 0 and 70 ms in stage 1. Adafactor works only with stage 0.
    """
    if config.train.precision == "fp32" or isinstance(config.optimizer, AdafactorConfig):
        return {}
    return {"zero_optimization": {"stage": 1}}


def engine_config(
    train: TrainConfig, ds_json: Mapping[str, Any], *, moe: bool, world_size: int | None = None
) -> JsonObject:
    """Merge the `train` section of the experiment with a DeepSpeed JSON.

    Batch size, accumulation, precision, clipping and logging come from `train` only; in the JSON
    they must be absent or "auto". Keys that belong to the JSON are passed through.

    Args:
        train: the `train` section.
        ds_json: content of the JSON.
        moe: whether the model has experts.
        world_size: number of ranks; None if unknown.

    Raises:
        UserError: the settings are invalid; lists every error, one per line.
    """
    findings = [
        *_ownership_errors(ds_json),
        *_unknown_key_errors(ds_json, PASSED, OWNED_BELOW, ""),
        *_stage_errors(train, ds_json, moe),
        *_broken_errors(train, ds_json),
    ]
    label = train.deepspeed or "the DeepSpeed JSON"
    lines = [f"{label}: {finding}" for finding in findings]
    if world_size is not None:
        try:
            check_world(train, world_size)
        except UserError as error:
            lines.append(str(error))
    if lines:
        raise UserError("\n".join(lines))
    passed = {key: value for key, value in ds_json.items() if key in PASSED}
    engine: JsonObject = {
        # nominal: batches are sized by tokens, and the loss is normalized by tokens
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.accumulate,
        # always written: without it, DeepSpeed clips at 1.0
        "gradient_clipping": train.clip_norm,
        "steps_per_print": train.log_every,
        **_without_auto(passed),
        **FIXED,
    }
    for section in ("fp16", "bf16"):
        engine[section] = {**engine.get(section, {}), "enabled": train.precision == section}
    _sum_in_fp32(engine, train)
    _save_launches(engine, world_size)
    return engine


def _sum_in_fp32(engine: JsonObject, train: TrainConfig) -> None:
    """Add up the gradients of micro-batches in fp32, unless the JSON chooses a type.

    DeepSpeed adds them in the precision of the model: in bf16, the last of 16 equal terms keeps 4
    bits. Stage 0 and offloaded optimizers of stages 1 and 2 can do nothing else, and with one
    micro-batch there is nothing to add.
    """
    stage = zero_stage(engine)
    can = stage == MAX_STAGE or (stage > 0 and not _offloads_optimizer(engine))
    if train.precision != "fp32" and train.accumulate > 1 and can:
        engine[_DATA_TYPES] = {_SUM_TYPE: "fp32", **engine.get(_DATA_TYPES, {})}


def _save_launches(engine: JsonObject, world_size: int | None) -> None:
    """Turn off features that launch many small kernels per step without any benefit here.

    DeepSpeed checks each bf16 gradient separately for overflow: 2,400 of the 2,850 operators of a
    step with 197 parameters. The trainer checks the global norm instead, which is equivalent, and
    stops. A single rank has no communication to overlap, yet would wait for its stream at every
    bucket.
    """
    if engine["bf16"]["enabled"]:
        engine["bf16"].setdefault("check_grad_overflow", False)
    if world_size == 1 and zero_stage(engine) in (1, 2):
        engine["zero_optimization"] = {**engine["zero_optimization"], "overlap_comm": False}


def zero_stage(ds_json: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a JSON, or 0 if it is missing or invalid."""
    zero = ds_json.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else 0
    return stage if isinstance(stage, int) else 0


def _offloads_optimizer(ds_json: Mapping[str, Any]) -> bool:
    zero = ds_json.get("zero_optimization")
    target = zero.get("offload_optimizer") if isinstance(zero, Mapping) else None
    return isinstance(target, Mapping) and target.get("device", "none") != "none"


def _without_auto(node: Any) -> Any:
    """Return `node` without its "auto" values, some of which DeepSpeed would read as strings."""
    if not isinstance(node, Mapping):
        return node
    return {key: _without_auto(value) for key, value in node.items() if value != AUTO}


def _is_auto(value: Any) -> bool:
    """Return whether `value` leaves the choice to ds_seq.

    This holds for "auto", and for the optimizer and scheduler of Hugging Face's files: a type with
    "auto" for each of its params.
    """
    if isinstance(value, Mapping) and isinstance(value.get("params"), Mapping):
        return all(item == AUTO for item in value["params"].values())
    return bool(value == AUTO)


def _ownership_errors(ds_json: Mapping[str, Any]) -> Iterator[str]:
    for key, value in ds_json.items():
        if key in OWNED and not _is_auto(value):
            yield _misplaced(key, OWNED[key])
        elif key in FIXED and value not in (AUTO, FIXED[key]):
            yield f"{key}: ds_seq needs {json.dumps(FIXED[key])}. Remove it"
        elif key in REFUSED:
            yield f"{key}: not supported: {REFUSED[key]}. Remove it"
    for section, owned in OWNED_BELOW.items():
        below = ds_json.get(section)
        if isinstance(below, Mapping):
            for key, home in owned.items():
                if below.get(key, AUTO) != AUTO:
                    yield _misplaced(f"{section}.{key}", home)


def _misplaced(key: str, home: str) -> str:
    return f'{key}: belongs in the experiment file: {home}. Remove it, or set it to "auto"'


def _unknown_key_errors(
    node: Mapping[str, Any], known: Keys, owned: Mapping[str, Mapping[str, str]], path: str
) -> Iterator[str]:
    handled = {*OWNED, *FIXED, *REFUSED} if not path else set(owned.get(path, ()))
    for key, value in node.items():
        dotted = f"{path}.{key}" if path else key
        if key in handled or value == AUTO:
            continue
        if key not in known:
            homes = paths_of_key(key)
            if len(homes) in (1, 2):
                yield _misplaced(dotted, " or ".join(homes))
            else:
                yield f"{dotted}: unknown key{_meant(key, [*known, *handled])}"
            continue
        expected = known[key]
        if dotted in OWNED_BELOW and isinstance(value, bool):  # a switch instead of its section
            yield _misplaced(dotted, OWNED_BELOW[dotted]["enabled"])
        elif isinstance(expected, str):
            wanted = wanted_instead(key, value, expected)
            if wanted is not None:
                yield f"{dotted}: should be {wanted}, not {json.dumps(value)}"
        elif isinstance(value, Mapping):
            yield from _unknown_key_errors(value, expected, owned, dotted)
        else:
            yield f"{dotted}: should be an object {{...}}, not {json.dumps(value)}"


def _meant(key: str, known: Sequence[str]) -> str:
    """Return the section that the key belongs to, or the nearest known key."""
    sections = [
        name for name, below in PASSED.items() if not isinstance(below, str) and key in below
    ]
    return f"; it belongs to {sections[0]}" if len(sections) == 1 else nearest(key, known)


def _stage_errors(train: TrainConfig, ds_json: Mapping[str, Any], moe: bool) -> Iterator[str]:
    zero = ds_json.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        return
    given = zero.get("stage", 0)
    if is_kind(given, "int") and not 0 <= given <= MAX_STAGE:
        yield f"zero_optimization.stage: should be 0, 1, 2 or 3, not {given}"
    elif given == AUTO:
        yield 'zero_optimization.stage: "auto" is not supported here; choose 0, 1, 2 or 3'
    stage = zero_stage(ds_json)
    if stage == 0 and moe and train.expert_parallel > 1 and train.precision != "fp32":
        yield (
            f"zero_optimization.stage: 0 cannot run experts in {train.precision} with "
            f"train.expert_parallel {train.expert_parallel}; use stage 1, 2 or 3"
        )
    offloaded = zero.get("offload_optimizer")
    share = offloaded.get("ratio", 1) if isinstance(offloaded, Mapping) else 1
    if share not in (1, AUTO) and stage < MAX_STAGE:
        yield f"zero_optimization.offload_optimizer.ratio: needs stage {MAX_STAGE}, not {stage}"
    for key, lowest in (("offload_optimizer", 1), ("offload_param", MAX_STAGE)):
        target = zero.get(key)
        if (
            isinstance(target, Mapping)
            and target.get("device", "none") != "none"
            and stage < lowest
        ):
            yield f"zero_optimization.{key}: needs at least stage {lowest}, not {stage}"


_OWN_ADAM_ONLY = (
    ("fp16", "fp16_master_weights_and_grads"),
    ("bf16", "bf16_master_weights_and_grads"),
    ("bf16", "bf16_optimizer_states"),
)


def _broken_errors(train: TrainConfig, ds_json: Mapping[str, Any]) -> Iterator[str]:
    """Report settings with which DeepSpeed 0.19 computes or saves wrong values."""
    given = ds_json.get("zero_optimization")
    zero = given if isinstance(given, Mapping) else {}
    stage = zero_stage(ds_json)
    spread = train.expert_parallel > 1
    if stage in (1, 2) and zero.get("round_robin_gradients") is True:
        yield (
            "zero_optimization.round_robin_gradients: DeepSpeed then mixes up parameters when "
            "a checkpoint reads them. Remove it"
        )
    for key in ("contiguous_gradients", "reduce_scatter"):
        if spread and stage in (1, 2) and zero.get(key) is False:
            yield (
                f"zero_optimization.{key}: gradients of experts on several ranks "
                f"(train.expert_parallel {train.expert_parallel}) need true. Remove it"
            )
    if spread and stage == MAX_STAGE and zero.get("zero_hpz_partition_size", 1) not in (1, AUTO):
        yield (
            "zero_optimization.zero_hpz_partition_size: not supported with experts on several "
            f"ranks (train.expert_parallel {train.expert_parallel}). Remove it"
        )
    if stage == MAX_STAGE and zero.get("stage3_module_granularity_threshold", 0) not in (0, AUTO):
        yield (
            "zero_optimization.stage3_module_granularity_threshold: these models cannot be fetched "
            "in larger parts. Remove it"
        )
    for section, key in _OWN_ADAM_ONLY:
        below = ds_json.get(section)
        if isinstance(below, Mapping) and below.get(key) is True:
            yield f"{section}.{key}: works only with DeepSpeed's own CPU Adam. Remove it"
    yield from _sum_type_errors(train, ds_json, stage)
    if stage > 1 and ds_json.get("gradient_predivide_factor", 1) not in (1, AUTO):
        yield f"gradient_predivide_factor: works with stages 0 and 1, not {stage}. Remove it"


def _sum_type_errors(train: TrainConfig, ds_json: Mapping[str, Any], stage: int) -> Iterator[str]:
    types = ds_json.get(_DATA_TYPES)
    chosen = types.get(_SUM_TYPE, AUTO) if isinstance(types, Mapping) else AUTO
    if chosen in (AUTO, train.precision):
        return
    if chosen != "fp32":
        allowed = " or ".join(sorted({"fp32", train.precision}, reverse=True))
        yield (
            f"{_DATA_TYPES}.{_SUM_TYPE}: should be {allowed} with train.precision "
            f"{train.precision}, not {json.dumps(chosen)}"
        )
    elif stage == 0:
        yield (
            f"{_DATA_TYPES}.{_SUM_TYPE}: stage 0 adds up gradients in {train.precision} only; use "
            "stage 1, 2 or 3, or remove it"
        )
    elif stage < MAX_STAGE and _offloads_optimizer(ds_json):
        yield (
            f"{_DATA_TYPES}.{_SUM_TYPE}: with offload_optimizer, stage {stage} does not recover "
            "from an overflow if it adds up gradients in fp32; use stage 3, or remove it"
        )


def _optimizer_errors(config: ExperimentConfig, stage: int) -> list[str]:
    if stage == 0 or not isinstance(config.optimizer, AdafactorConfig):
        return []
    return [
        "optimizer.name: adafactor factors the rows and columns of matrices, but ZeRO stage "
        f"{stage} passes flat slices to optimizers; use stage 0 in {config.train.deepspeed}, or "
        "adamw"
    ]
