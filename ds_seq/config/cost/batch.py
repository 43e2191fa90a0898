"""The batch for which costs are computed, and the device that keeps its tensors."""

from __future__ import annotations

from typing import NamedTuple

from ds_seq.names import Precision, Stack

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number."""
FLOAT, INDEX = 4, 8
"""Bytes of a number that stays in float32, such as statistics of norms, and of a row's number."""


class BatchShape(NamedTuple):
    """Sentences of equal length: the most that a batch of this many tokens can cost."""

    sentences: int
    length: int
    """Tokens of each sentence, on both sides."""

    @classmethod
    def of(cls, tokens: int, length: int) -> BatchShape:
        """Return the batch of `tokens` per side; sentences of `length`, or of all the tokens."""
        length = max(1, min(length, tokens))
        return cls(max(1, tokens // length), length)

    @property
    def tokens(self) -> int:
        """Tokens of one side."""
        return self.sentences * self.length


class Device(NamedTuple):
    """How a kind of device keeps what a backward pass needs."""

    width: int
    """Bytes of a number of the model's precision."""
    mask: int
    """Bytes of an element of a dropout mask."""
    groups_experts: bool
    """Whether one kernel computes the experts of a layer, and keeps what a dense one would."""
    fuses_dropout: bool
    """Whether the fused attention kernel can drop weights; else it keeps attention maps."""
    pads: bool
    """Whether masks of padding are made without padding, too."""
    loss_block: int
    """Logits that the loss copies to float32 at a time; 0: none."""
    keeps_workspace: bool
    """Whether LSTM layers keep a workspace of oneDNN."""


LOSS_BLOCK = 1 << 18
"""Logits that the loss processes at a time in a thread of a CPU."""


def device(kind: str, precision: Precision) -> Device:
    """Return the properties of `gpu` or `cpu`."""
    width = WIDTH[precision]
    if kind == "cpu":
        block = 0 if precision == "fp32" else LOSS_BLOCK
        return Device(
            width,
            width,
            False,
            fuses_dropout=False,
            pads=False,
            loss_block=block,
            keeps_workspace=True,
        )
    return Device(
        width,
        1,
        precision == "bf16",
        fuses_dropout=True,
        pads=True,
        loss_block=0,
        keeps_workspace=False,
    )


class Layer(NamedTuple):
    """What one call of a layer keeps for its backward pass, in bytes."""

    stack: Stack
    kept: float
    """All of it."""
    entry: float
    """Its input alone."""


class Activations(NamedTuple):
    """Bytes that a batch keeps."""

    layers: tuple[Layer, ...]
    """Calls of layers in the order of the forward pass."""
    rest: float
    """Kept outside the layers: around embeddings, and the norms at the ends of the stacks."""
    logits: float
    """Scores of all target tokens over the vocabulary."""
    hidden: float
    """The hidden states of the target."""
