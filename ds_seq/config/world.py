"""What of an experiment depends on the number of ranks."""

from __future__ import annotations

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.train import TrainConfig
from ds_seq.errors import UserError


def on_world(config: ExperimentConfig, world_size: int) -> ExperimentConfig:
    """Return an experiment with the `train.accumulate` that follows from the number of ranks.

    Raises:
        UserError: there are more ranks than batches in an update.
    """
    train = config.train
    group, tokens = train.fixed_group, train.global_batch_tokens
    if group is not None and group < world_size:
        what = f"train.batches_per_update: {group} is less than the world size {world_size}"
        more = ""
        if tokens is not None:
            what = (
                f"train.global_batch_tokens: {tokens:,} are only {group} batch(es) of "
                f"train.max_tokens {train.max_tokens:,} on {world_size} ranks"
            )
            more = ", lower train.max_tokens,"
        raise UserError(
            f"{what}, so ranks would have nothing to do; raise it{more} or start fewer ranks"
        )
    train = train.model_copy(update={"accumulate": train.accumulate_on(world_size)})
    return config.model_copy(update={"train": train})


def check_world(train: TrainConfig, world_size: int) -> None:
    """Check that `train.expert_parallel` divides the number of ranks.

    Raises:
        UserError: it does not.
    """
    ranks = train.expert_parallel
    if world_size % ranks:
        raise UserError(
            f"train.expert_parallel: {ranks} does not divide the world size {world_size}; start a "
            f"multiple of {ranks} ranks or lower train.expert_parallel"
        )
