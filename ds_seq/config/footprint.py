"""What a run takes: tokens per update, updates per epoch, and memory per process; rough by design.

The memory of weights, gradients and optimizer follows from their number (Rajbhandari et al. 2020,
"ZeRO"). That of activations is estimated from the tensors that a layer keeps for its backward pass.
"""

from __future__ import annotations

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model.transformer import ModelSize
from ds_seq.config.needs import TrainManifest
from ds_seq.config.optim import AdamConfig, SgdConfig

_GIB = 2**30
# widths of d_model that a layer keeps per token: inputs of sub-layers, projections, dropout masks
_KEPT = {"encoder": 10, "decoder": 17}


def batch_lines(
    config: ExperimentConfig, world_size: int | None, manifest: TrainManifest | None
) -> list[str]:
    """Return lines about tokens per update and epochs.

    Args:
        config: the experiment.
        world_size: number of processes; None if unknown.
        manifest: manifest of the training shards; None if they do not exist yet.
    """
    train, ranks = config.train, world_size or config.train.expert_parallel
    tokens = config.batch_tokens * train.group(ranks)
    lines = [
        f"update  {tokens:>16,}   tokens, padding included: max_tokens {_batch_size(config)} x "
        + (
            _fixed_group(config, world_size)
            if train.fixed_group is not None
            else f"accumulate {train.accumulate} x {ranks} process(es)"
            + ("" if world_size else "; --world-size N for N processes")
        )
    ]
    if manifest is None:
        return [*lines, "epoch                  -   known after `ds-seq prepare`"]
    shards = manifest["shards"]
    longer_side = max(sum(s["src_tokens"] for s in shards), sum(s["tgt_tokens"] for s in shards))
    updates, pairs = max(1, round(longer_side / tokens)), sum(shard["pairs"] for shard in shards)
    epochs = train.max_updates / updates
    return [
        *lines,
        f"epoch   {updates:>16,}   updates or a little more, of {pairs:,} pairs",
        f"epochs  {epochs:>16,.1f}   in train.max_updates {train.max_updates:,}"
        + ("" if train.max_epochs is None else f"; stops after {train.max_epochs}"),
    ]


def _fixed_group(config: ExperimentConfig, world_size: int | None) -> str:
    train = config.train
    group = f"batches_per_update {train.fixed_group}"
    if train.global_batch_tokens is not None:
        group += f" for global_batch_tokens {train.global_batch_tokens:,}"
    if world_size is None:
        return f"{group}, on any number of processes"
    return f"{group} = accumulate {train.accumulate_on(world_size)} on {world_size} process(es)"


def _batch_size(config: ExperimentConfig) -> str:
    is_known = isinstance(config.train.max_tokens, int)
    return f"{config.batch_tokens:,}{'' if is_known else ' (assumed)'}"


def memory_lines(config: ExperimentConfig, stage: int, world_size: int | None) -> list[str]:
    """Return lines about memory per process; empty for a model of unknown size.

    Args:
        config: the experiment.
        stage: ZeRO stage.
        world_size: number of processes; None if unknown.
    """
    vocab = config.data.vocab
    size = config.model.num_params(vocab.target_side.size, vocab.source_side.size)
    if size is None:
        return []
    ranks = world_size or config.train.expert_parallel
    states = _state_bytes(config, size, stage, ranks) / _GIB
    activations = _activation_bytes(config) / _GIB
    return [
        f"states  {states:>12.2f} GiB   weights, gradients and optimizer, ZeRO stage {stage}, "
        f"{ranks} process(es)",
        f"batch   {activations:>12.2f} GiB   activations of {_batch_size(config)} tokens, a "
        "rough estimate; train.max_tokens lowers it",
    ]


def _state_bytes(config: ExperimentConfig, size: ModelSize, stage: int, ranks: int) -> float:
    """Return the bytes of weights, gradients and optimizer states of one process."""
    is_half = config.train.precision != "fp32"
    weight = 2 if is_half else 4
    optimizer = 4 if is_half else 0  # the fp32 copy of the weights
    if isinstance(config.optimizer, AdamConfig):
        optimizer += 8
    elif isinstance(config.optimizer, SgdConfig):
        optimizer += 4 if config.optimizer.momentum else 0
    optimizer += 0 if config.train.ema is None else 4
    spread = config.train.expert_parallel
    parts = ((size.total - size.experts, ranks), (size.experts / spread, max(1, ranks // spread)))
    total = 0.0
    for count, group in parts:  # ZeRO divides a parameter among the processes that have a copy
        shares = [group if stage >= least else 1 for least in (3, 2, 1)]
        total += count * sum(
            bytes_each / share
            for bytes_each, share in zip((weight, weight, optimizer), shares, strict=True)
        )
    return total


def _activation_bytes(config: ExperimentConfig) -> float:
    model, tokens = config.model, config.batch_tokens
    width = 4 if config.train.precision == "fp32" else 2
    # per token of a feed-forward: what enters its activation and what leaves it
    inner = 4 if model.is_gated else 2
    inner += 2 if model.activation_dropout else 0
    layers, ffn_width = [], model.inner_width(model.ffn_dim)
    for stack in model.stacks:
        for num_experts in model.expert_counts(stack):
            copies = 1
            if model.moe is not None and num_experts:
                copies = model.moe.top_k + model.moe.shared_experts
            kept = _KEPT[stack] * model.d_model + copies * inner * ffn_width
            layers += [kept] * model.repeats_of(stack)
    kept = sum(layers)
    if model.activation_checkpointing:  # the input of each layer, and all of one layer at a time
        kept = len(layers) * model.d_model + max(layers)
    logits = config.data.vocab.target_side.size * (width + 4)  # and their float32 gradient
    return tokens * (kept * width + logits)
