"""How long a run is: tokens per update, updates per epoch, tokens per sentence."""

from __future__ import annotations

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.needs import TrainManifest


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


def mean_length(manifest: TrainManifest | None) -> int | None:
    """Return the mean number of tokens of the longer side, rounded up; None if it is not known.

    Args:
        manifest: manifest of the training shards; None if they do not exist yet.
    """
    if manifest is None:
        return None
    pairs = sum(shard["pairs"] for shard in manifest["shards"])
    longer = max(sum(s[side] for s in manifest["shards"]) for side in ("src_tokens", "tgt_tokens"))
    return max(1, -(-longer // pairs)) if pairs else None
