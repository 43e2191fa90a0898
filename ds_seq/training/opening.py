"""Open the checkpoints and the log of a run."""

from __future__ import annotations

from ds_seq import distributed
from ds_seq.data.stream import BatchStream
from ds_seq.distributed import World
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.history import History
from ds_seq.training.provenance import describe_start, record_start
from ds_seq.training.run_folder import RunSetup
from ds_seq.training.run_log import RunLog
from ds_seq.training.saves import Saves
from ds_seq.training.trackers import Watch, tracked
from ds_seq.training.validation import BestBy
from ds_seq.weights.meta import CHECKPOINTS


def open_saves(
    setup: RunSetup, history: History, best: BestBy, vocab_hash: str, done: int, world: World
) -> tuple[Saves, list[str]]:
    """Open the checkpoints of a run. A collective.

    Args:
        setup: the run.
        history: how its config has changed.
        best: the score by which checkpoints are compared.
        vocab_hash: see `CheckpointStore`.
        done: updates after which it has resumed; 0 if it is new.
        world: this rank and the others.

    Returns:
        The saves, and messages for the user.

    Raises:
        UserError: the folder cannot be written.
    """
    train, messages = setup.config.train, []
    with distributed.shared_errors():
        store = CheckpointStore(
            setup.folder / CHECKPOINTS,
            train.keep_last,
            train.keep_best,
            best.higher_is_better,
            vocab_hash,
            best.figure,
            history.scores_compare,
            drops_state=not train.keep_best_state,
        )
        if world.is_first:
            messages = store.continue_after(done)
    goes_on = train.on_save_error == "continue"
    return Saves(store, train.background_save, goes_on), messages


def open_log(setup: RunSetup, batches: BatchStream, world: World, done: int) -> RunLog:
    """Open the log of a run, and record its start. A collective.

    Args:
        setup: the run.
        batches: its training batches.
        world: this rank and the others.
        done: see `open_saves`.
    """
    train = setup.config.train
    last = train.max_updates
    if train.max_epochs is not None:
        last = min(last, train.max_epochs * batches.updates_per_epoch)
    options = (setup.folder, world.is_first, train.tensorboard, last, done)
    shown, trackers = tracked(setup.config, setup.folder)
    if setup.on_figures is not None:
        trackers.append(Watch(setup.on_figures))
    log = RunLog(*options, shown, trackers)
    if world.is_first:
        vocab = setup.config.data.vocab
        size = setup.config.model.num_params(vocab.target_side.size, vocab.source_side.size)
        total = None if size is None else size.total
        log.say(describe_start(record_start(setup.folder, world, done, last, total)))
    for line in distributed.describe_places(world):
        log.say(line)
    return log
