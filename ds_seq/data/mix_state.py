"""The state of a mix of corpora in a checkpoint, and the position that it stands for."""

from __future__ import annotations

from typing_extensions import NotRequired, TypedDict

from ds_seq.data.mixing import Mix, Position, Segment
from ds_seq.records import Count, Positive, record


@record
class SegmentState(TypedDict):
    """See `ds_seq.data.mixing.Segment`."""

    stage: Count
    epoch: Positive
    taken: Count
    walked: list[Count]
    cut: Count | None
    order: NotRequired[Count]  # missing before version 2


@record
class CorpusState(TypedDict):
    """A corpus in a checkpoint.

    Attributes:
        fingerprint: fingerprint of its content.
        walked: number of its pairs that are taken after the present epoch.
    """

    fingerprint: str
    walked: Count


@record
class MixState(TypedDict):
    """A position in a mix, in addition to epoch and offset.

    Attributes:
        fingerprint: fingerprint of all that determines the order.
        segments: the segments so far.
        updates: number of finished updates of the stage.
        taken: number of pairs of the stage after the present epoch.
        corpora: the corpora by name.
    """

    fingerprint: str
    segments: list[SegmentState]
    updates: Count
    taken: Count
    corpora: dict[str, CorpusState]


def mix_state(mix: Mix, position: Position) -> MixState:
    """Return the state at a position."""
    taken, walked = mix.after_epoch(position.plan, position.epoch)
    return {
        "fingerprint": mix.fingerprint,
        "segments": [
            {
                "stage": segment.stage,
                "epoch": segment.epoch,
                "taken": segment.taken,
                "walked": list(segment.walked),
                "cut": segment.cut,
                "order": segment.order,
            }
            for segment in position.plan
        ],
        "updates": position.stage_updates,
        "taken": taken,
        "corpora": {
            name: {"fingerprint": mix.corpora[name].fingerprint, "walked": count}
            for name, count in zip(mix.corpora, walked, strict=True)
        },
    }


def mix_position(mix: Mix, state: MixState | None, epoch: int) -> tuple[Position, str]:
    """Return the position of a state, and what has changed since then, if anything.

    If the mix has changed, the position is the start of a new epoch. Corpora that are still the
    same are walked on from the end of the present epoch, others from their first pair.

    Args:
        mix: the present mix.
        state: state of the mix; None if the checkpoint is of a training without one.
        epoch: epoch of the checkpoint.
    """
    if state is None:
        start = mix.start[0]._replace(epoch=epoch + 1)
        return Position(epoch + 1, plan=(start,)), "the corpora were not mixed before"
    if state["fingerprint"] == mix.fingerprint:
        plan = tuple(
            Segment(
                s["stage"], s["epoch"], s["taken"], tuple(s["walked"]), s["cut"], s.get("order", 1)
            )
            for s in state["segments"]
        )
        return Position(epoch, plan=plan, stage_updates=state["updates"]), ""
    known = state["corpora"]
    same = [
        name in known and known[name]["fingerprint"] == corpus.fingerprint
        for name, corpus in mix.corpora.items()
    ]
    walked = tuple(
        known[name]["walked"] if is_same else 0
        for name, is_same in zip(mix.corpora, same, strict=True)
    )
    stage = min(state["segments"][-1]["stage"], len(mix.stages) - 1)
    segment = Segment(stage, epoch + 1, state["taken"], walked)
    new = [name for name, is_same in zip(mix.corpora, same, strict=True) if not is_same]
    what = f"corpus {', '.join(new)} has changed" if new else "the mix has changed"
    return Position(epoch + 1, plan=(segment,), stage_updates=state["updates"]), what
