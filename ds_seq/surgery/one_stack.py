"""Start an encoder-decoder from a model of one stack: an encoder, or a decoder."""

from __future__ import annotations

from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.names import Stack
from ds_seq.weights.fill import Allowed
from ds_seq.weights.selection import Selection

_NEW: dict[tuple[Stack, ...], tuple[str, ...]] = {
    ("encoder",): ("decoder",),
    ("decoder",): ("encoder", "*.cross_attention", "*.cross_attention_residual"),
}
"""What an encoder-decoder has besides the stack that it starts from, as a `Selection`."""


SCORES = ("lm_head", "target_embedding.bias")
"""What scores a token of a model of one stack, besides a projection of its own."""


def parts_apart(run: str, theirs: ModelConfig, ours: ModelConfig) -> Allowed:
    """Return how a model that starts from a model of one stack may differ from it.

    Args:
        run: what messages call the model of one stack.
        theirs: section of the model to start from.
        ours: section of the model that starts.

    Returns:
        Parts that are new, and parts that are left out; none if both have the same stacks.

    Raises:
        UserError: the model that starts has no such stack, or several tables of embeddings.
    """
    if theirs.stacks == ours.stacks or len(theirs.stacks) > 1:
        return Allowed()
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
    return Allowed(Selection(_NEW[theirs.stacks]), Selection(SCORES))
