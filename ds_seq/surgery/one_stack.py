"""Start an encoder-decoder from a model of one stack: an encoder, or a decoder."""

from __future__ import annotations

from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.names import Stack

_NEW: dict[tuple[Stack, ...], tuple[str, ...]] = {
    ("encoder",): ("decoder",),
    ("decoder",): ("encoder", "*.cross_attention", "*.cross_attention_residual"),
}
"""What an encoder-decoder has besides the stack that it starts from, as a `Selection`."""


def parts_besides(run: str, theirs: ModelConfig, ours: ModelConfig) -> tuple[str, ...]:
    """Return the parts of a model that a model of one stack cannot give it.

    Args:
        run: what messages call the model of one stack.
        theirs: section of the model to start from.
        ours: section of the model that starts.

    Returns:
        Entries of a `ds_seq.weights.selection.Selection`; none if both have the same stacks.

    Raises:
        UserError: the model that starts has no such stack, or several tables of embeddings.
    """
    if theirs.stacks == ours.stacks or len(theirs.stacks) > 1:
        return ()
    if len(ours.stacks) == 1:
        raise UserError(
            f"train.init_from: {run} is a model {theirs.name}, whose stack has no place in a model "
            f"{ours.name}"
        )
    if not ours.shares_inputs:
        raise UserError(
            f"train.init_from: {run} has one table of embeddings, which source and target must "
            "share; set model.share_embeddings to all or inputs"
        )
    return _NEW[theirs.stacks]
