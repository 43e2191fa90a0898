"""Choose the checkpoint from which a run resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_seq import distributed
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.training.checkpoint_folder import candidates, first_sound, without_advice


def check_options(
    resume: bool, overwrite: bool, allow_changes: Sequence[str], checkpoint: str | None
) -> None:
    """Check that the options of a run that resumes do not contradict each other.

    Args:
        resume: see `run_training`.
        overwrite: see `run_training`.
        allow_changes: see `run_training`.
        checkpoint: see `run_training`.

    Raises:
        UserError: they do.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one of them")
    if allow_changes and not resume:
        raise UserError("--allow-change: only applies to a run that resumes; add --resume")
    if checkpoint is not None and not resume:
        raise UserError(f"--checkpoint {checkpoint}: only chooses where to --resume; add that")


def choose_start(run: Path, which: str | None, world: World) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to resume from. A collective.

    Args:
        run: folder of the run, whose lock the first rank holds.
        which: see `candidates`.
        world: this rank and the others.

    Returns:
        The checkpoint, or None if there is none, and what is wrong with newer ones.

    Raises:
        UserError: none can be resumed from, or not the one that is named.
    """
    found: list[Path] = []
    with distributed.shared_errors():
        if world.is_first:
            found = candidates(run, which)
    found = distributed.broadcast_object(found)
    start, problems = first_sound(found)
    # if the user has named none, their advice to use another checkpoint is followed here
    causes = problems if which is not None else list(map(without_advice, problems))
    with distributed.shared_errors():
        if found and start is None and which is None:
            raise UserError(
                f"{run}: none of its checkpoints can be resumed from; --overwrite starts over. "
                f"`ds-seq verify {run}` checks all {len(found)}. The newest: {causes[0]}"
            )
        if found and start is None:
            raise UserError(causes[0])
    return start, [f"{cause}; going back to an older checkpoint" for cause in causes]
